"""Compare exported folders with PyTorch: in ONNX Runtime, and in transformers.js, from a folder and over HTTP."""

import builtins
import functools
import http.server
import json
import resource
import shutil
import subprocess
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from fastgoal import FastGoalModel, FastGoalProcessor, evaluate, push
from fastgoal.cli import main
from fastgoal.export import onnx_files
from fastgoal.export.export_onnx import export_onnx
from fastgoal.hub_cards.repository import choose_files
from fastgoal.processing.checkpoints.load import load_model
from tests.squares import image_of

OUTSIDER = Path(__file__).parents[2] / "outsiders" / "transformers_js"
LONG = "A long caption with many words and 3 numbers."
# The last two are longer than the models read, and differ only before the limit. One spells the end token.
TEXTS = ["a red dog", LONG, f"Red! {LONG * 12}", f"Blue <|endoftext|></s> {LONG * 12}"]
needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")), reason="the extra onnx is missing"
)
needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (OUTSIDER / "node_modules" / "@huggingface" / "transformers").is_dir(),
    reason="node or transformers.js is missing: npm install --ignore-scripts in tests/outsiders/transformers_js",
)


def save_long(base, folder):
    FastGoalModel.from_base(str(base)).save_pretrained(folder)
    FastGoalProcessor.from_base(str(base)).save_pretrained(folder)
    return folder


@pytest.fixture(params=["clip", "metaclip2", "siglip", "siglip2"], scope="module")
def exported(request, tiny_bases, tmp_path_factory):
    """The family, its model's folder, and the exported one: CLIP in all precisions, SigLIP 2 with external data."""
    folder = tmp_path_factory.mktemp(request.param)
    model = save_long(tiny_bases[request.param], folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "siglip2":
            patch.setattr(onnx_files, "LARGEST_FILE", 50_000)
        precision = [*onnx_files.PRECISIONS] if request.param == "clip" else ["fp32"]
        done = export_onnx(str(model), folder / "web", precision)
    return request.param, model, folder / "web", done


def expected_of(model, images):
    """Return the model's own embeddings of the texts, and of images, with their logits."""
    loaded, processor = load_model(str(model), "cpu")
    inputs = processor(images=images, text=TEXTS)
    with torch.no_grad():
        return inputs, loaded(**inputs)


@needs_onnx
@pytest.mark.slow
def test_onnx_runtime_gives_our_numbers(exported):
    import onnxruntime

    family, model, web, done = exported
    assert max(done.differences.values()) < 1e-4
    inputs, expected = expected_of(
        model, [image_of("red", "green"), image_of("blue", "white"), image_of("red", "blue")]
    )
    names = ("pooler_output", "pooler_output") if "siglip" in family else ("text_embeds", "image_embeds")
    both = ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"]
    for file, outputs, fields in (
        ("text_model", names[:1], ["text_embeds"]),
        ("vision_model", names[1:], ["image_embeds"]),
        ("model", both, both),
    ):
        session = onnxruntime.InferenceSession(web / "onnx" / f"{file}.onnx")
        assert [entry.name for entry in session.get_outputs()] == [*outputs]
        feed = {entry.name: inputs[entry.name].numpy() for entry in session.get_inputs()}
        for result, field in zip(session.run(None, feed), fields, strict=True):
            torch.testing.assert_close(torch.from_numpy(result), expected[field], atol=2e-5, rtol=2e-5)
        assert str(Path.home()).encode() not in (web / "onnx" / f"{file}.onnx").read_bytes()


@needs_onnx
@pytest.mark.slow
def test_the_files_of_the_layout(exported):
    family, _, web, done = exported
    files = sorted(str(path.relative_to(web)) for path in web.rglob("*") if path.is_file())
    suffixes = ["", "_fp16", "_quantized"] if family == "clip" else [""]
    graphs = [f"onnx/{name}{suffix}.onnx" for name in ("model", "text_model", "vision_model") for suffix in suffixes]
    config = json.loads((web / "config.json").read_text())
    settings = config.get("transformers.js_config", {})
    if family == "siglip2":
        assert settings["use_external_data_format"] == {Path(name).name: 1 for name in graphs}
        graphs += [f"{name}_data" for name in graphs]
    assert files == sorted([*graphs, "README.md", *(f"{name}.json" for name in LAYOUT)])
    # A push sends all of them.
    assert sorted(push(web, "owner/name", dry_run=True).files) == files
    assert ModelCard.load(web / "README.md").data.library_name == "transformers.js"
    assert choose_files(web, "model") == (files, [])
    # Browsers would load int8, which was not exported.
    assert settings.get("dtype") == (None if family == "clip" else "fp32")
    assert "auto_map" not in config
    assert config["architectures"] == [{"clip": "CLIPModel", "metaclip2": "MetaClip2Model"}.get(family, "SiglipModel")]
    if family == "clip":
        sizes = {name: sum(cost.files.values()) for name, cost in done.precisions.items()}
        assert sizes["int8"] < sizes["fp16"] < sizes["fp32"]
        costs = done.precisions
        assert costs["fp32"].text_cosine == pytest.approx(1, abs=1e-6)
        assert 0.99 < costs["int8"].text_cosine < costs["fp16"].text_cosine
        assert 0.99 < costs["int8"].image_cosine < costs["fp16"].image_cosine


LAYOUT = ("config", "preprocessor_config", "tokenizer", "tokenizer_config")


@pytest.fixture
def served(exported):
    """The address of a server of the exported folder, and the paths that were asked for."""
    paths = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            paths.append(self.path)

    handler = functools.partial(Handler, directory=exported[2].parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", paths
        server.shutdown()
        thread.join()


def run_node(folder, image, host, dtype, is_siglip):
    question = {"model": "web", "host": host, "cache": f"{folder}/cache", "dtype": dtype, "image": str(image)}
    (folder / "input.json").write_text(json.dumps({**question, "texts": TEXTS, "is_siglip": is_siglip}))
    command = ["node", str(OUTSIDER / "run.mjs"), str(folder / "input.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_onnx
@needs_node
@pytest.mark.outsider
@pytest.mark.slow
def test_transformers_js_gives_our_numbers(exported, served, tmp_path):
    family, model, web, _ = exported
    is_siglip = "siglip" in family
    image_of("red", "green", (32, 32)).save(tmp_path / "image.png")
    inputs, expected = expected_of(model, Image.open(tmp_path / "image.png"))
    logits = expected.logits_per_image[0]
    scores = logits.sigmoid() if is_siglip else logits.softmax(dim=-1)
    for host, dtype in ((f"{web.parent}/", "fp32"), (served[0], "fp32"), (served[0], "fp16"), (served[0], "q8")):
        if dtype != "fp32" and family != "clip":
            continue
        got = run_node(tmp_path, tmp_path / "image.png", host, dtype, is_siglip)
        # transformers.js cuts texts without EOS, so the last ids differ; the graph mends that.
        assert [row[:-1] for row in got["input_ids"]] == inputs["input_ids"][:, :-1].tolist()
        torch.testing.assert_close(
            torch.tensor(got["pixel_values"], dtype=torch.float32), inputs["pixel_values"], atol=1e-5, rtol=0
        )
        tolerance = 2e-2 if dtype == "q8" else 2e-3
        for name in ("text_embeds", "image_embeds"):
            torch.testing.assert_close(torch.tensor(got[name]), expected[name], atol=tolerance, rtol=0)
        got_scores = torch.tensor([got["scores"][text] for text in TEXTS])
        torch.testing.assert_close(got_scores, scores, atol=tolerance, rtol=0)
        # Captions that were cut keep embeddings of their own.
        texts = torch.tensor(got["text_embeds"])
        assert (texts[2] - texts[3]).abs().max() > 2e-2
    assert any("onnx/text_model.onnx" in path for path in served[1])
    assert any("text_model.onnx_data" in path for path in served[1]) == (family == "siglip2")


@needs_onnx
@needs_node
@pytest.mark.outsider
@pytest.mark.slow
@pytest.mark.parametrize("exported", ["clip"], indirect=True)
def test_transformers_js_resizes_nearly_as_we_do(exported, tmp_path):
    _, model, web, _ = exported
    image = Image.effect_mandelbrot((300, 200), (-2.2, -1.2, 0.8, 1.2), 60).convert("RGB")
    image.save(tmp_path / "image.png")
    inputs, _ = expected_of(model, image)
    got = run_node(tmp_path, tmp_path / "image.png", f"{web.parent}/", "fp32", False)
    pixels = torch.tensor(got["pixel_values"], dtype=torch.float32).flatten()
    assert torch.cosine_similarity(pixels, inputs["pixel_values"].flatten(), dim=0) > 0.99


@needs_onnx
@pytest.mark.slow
def test_the_command_measures_recall(tiny_clip, pairs_folder, tmp_path, capsys, recwarn, caplog):
    command = ["export", str(tiny_clip), "--to", "onnx", "--output", str(tmp_path / "web")]
    assert main([*command, "--precision", "fp32", "int8", "--data", str(pairs_folder)]) == 0
    assert "pre-processing" not in caplog.text
    assert not [warning for warning in recwarn if "axis name" in str(warning.message)]
    printed = capsys.readouterr().out
    assert printed.count("differs from PyTorch by at most") == 3
    expected = evaluate(str(tiny_clip), str(pairs_folder)).metrics
    for name, value in expected.items():
        direction, _, measure = name.rpartition("_")
        text = f"{measure}, {direction.replace('_', ' ')} {100 * value:.2f} %"
        assert (text in printed) == ("R@" in name), text


@needs_onnx
@pytest.mark.slow
def test_a_full_disk_leaves_nothing(tiny_clip, tmp_path, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        assert main(["export", str(tiny_clip), "--to", "onnx", "--output", str(tmp_path / "web")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "File too large" in error
    assert str(tmp_path / "web") in error
    assert [*tmp_path.iterdir()] == []


@needs_onnx
@pytest.mark.parametrize("opset", [3, 99])
def test_an_opset_that_the_runtime_lacks(tiny_clip, tmp_path, capsys, opset):
    command = ["export", str(tiny_clip), "--to", "onnx", "--output", str(tmp_path / "web"), "--opset", str(opset)]
    assert main(command) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--opset" in error
    assert f"got {opset}" in error
    assert [*tmp_path.iterdir()] == []


@needs_onnx
def test_bad_input(tiny_clip, tmp_path, capsys):
    model = save_long(tiny_clip, tmp_path / "model")
    command = ["export", str(model), "--to", "onnx", "--output"]
    assert main([*command, str(tmp_path)]) == 2
    assert "empty folder" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "web"), "--precision", "int4"]) == 2
    assert "--precision" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "web"), "--data", str(tmp_path / "absent")]) == 2
    assert "absent" in capsys.readouterr().err
    loaded = FastGoalModel.from_pretrained(model)
    loaded.visual_projection.weight.data[0, 0] = float("nan")
    loaded.save_pretrained(model)
    assert main([*command, str(tmp_path / "web")]) == 2
    assert "NaN" in capsys.readouterr().err.strip().splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_import_error_says_what_to_install(monkeypatch, tiny_clip, tmp_path, capsys):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("onnx"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["export", str(tiny_clip), "--to", "onnx", "--output", str(tmp_path / "web")]) == 2
    assert "pip install 'fastgoal[onnx]'" in capsys.readouterr().err
