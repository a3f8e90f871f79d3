"""Checkpoints that are damaged, of another kind, or come with code are refused in one line that names them."""

import builtins
import contextlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, BertConfig, Siglip2Config

from fastgoal import FastGoalCLIPModel, FastGoalProcessor
from fastgoal.processing.builders.captioner import Captioner
from fastgoal.processing.checkpoints.devices import choose_device
from fastgoal.processing.checkpoints.load import check_model, load_model
from fastgoal.processing.detectors.load import load_detector
from tests.tiny_models import make_sam, make_vlm, make_yolos


@pytest.fixture
def clip(tiny_clip, tmp_path):
    return shutil.copytree(tiny_clip, tmp_path / "clip")


def settings(change, name="config.json"):
    def spoil(folder):
        config = json.loads((folder / name).read_text())
        change(config)
        (folder / name).write_text(json.dumps(config))

    return spoil


def weights(change):
    def spoil(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return spoil


def content(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def pixels(**changes):
    return settings(lambda config: config["image_processor"].update(changes), "processor_config.json")


SPOILED = {
    "cut": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:3000]), "damaged"),
    "empty weights": (content("model.safetensors", b""), "damaged"),
    "a text": (content("model.safetensors", b"hello, I am a text and no weights at all" * 9), "damaged"),
    "a pointer": (content("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), "pointer of git-lfs"),
    "too long a header": (content("model.safetensors", (2**60).to_bytes(8, "little") + b"{}"), "damaged"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "a weight less": (weights(lambda t: t.pop("text_projection.weight")), "text_projection.weight is missing"),
    "a tower less": (
        weights(lambda t: [t.pop(n) for n in [*t] if n.startswith("vision")]),
        "vision_model.* is missing, and .* more",
    ),
    "another shape": (
        weights(lambda t: t.update({"logit_scale": torch.zeros(3)})),
        r"logit_scale has the shape \(3,\)",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json|[Uu]nrecognized"),
    "no JSON": (content("config.json", b"{"), "config.json|JSON"),
    "a list": (content("config.json", b"[1]"), "cannot be loaded"),
    "no type": (settings(lambda c: c.pop("model_type")), "cannot be loaded"),
    "an unknown type": (settings(lambda c: c.update(model_type="clap9")), "cannot be loaded"),
    "a BERT": (lambda f: BertConfig().save_pretrained(f), "of type 'bert'"),
    "a NaFlex": (lambda f: Siglip2Config().save_pretrained(f), r"NaFlex.*fixed resolution.*google/siglip2-base"),
    "an unknown activation": (settings(lambda c: c["text_config"].update(hidden_act="gulp")), "gulp"),
    "heads that do not divide": (
        settings(lambda c: c["text_config"].update(num_attention_heads=7)),
        "multiple|divisible",
    ),
    "a negative size": (settings(lambda c: c["text_config"].update(hidden_size=-16)), "cannot be loaded"),
    "a text for a size": (settings(lambda c: c["vision_config"].update(patch_size="big")), "cannot be loaded"),
    "another width": (settings(lambda c: c.update(projection_dim=24)), "cannot be loaded"),
    "no tokenizer": (
        lambda f: [p.unlink() for p in [*f.glob("token*"), *f.glob("vocab*"), *f.glob("merges*")]],
        "token",
    ),
    "a broken tokenizer": (content("tokenizer.json", b"{}"), "tokenizer"),
    "a tokenizer that is none": (content("tokenizer.json", b"x"), "tokenizer"),
    **{
        f"{key} {value}": (pixels(**{key: value}), f"image processor (?:{words}).*`image_mean`")
        for key, value, words in (
            ("image_std", [0, 0, 0], "makes .*NaN or infinite"),
            ("image_std", [0.5, 0.0, 0.5], "makes .*NaN or infinite"),
            ("image_mean", [0.5, 0.5], "cannot process"),
            ("image_mean", ["a", "b", "c"], "cannot process"),
            ("image_mean", [float("nan")] * 3, "makes .*NaN or infinite"),
            ("rescale_factor", float("inf"), "makes .*NaN or infinite"),
            ("crop_size", {"height": 0, "width": 0}, "cannot process|makes an input of shape"),
            ("crop_size", {"height": 31, "width": 32}, "makes an input of shape"),
        )
    },
}


@pytest.mark.parametrize("length", [None, 248])
@pytest.mark.parametrize("name", SPOILED)
def test_damaged_checkpoints_are_refused_in_one_line(clip, name, length):
    spoil, words = SPOILED[name]
    spoil(clip)
    with pytest.raises(ValueError, match=rf"(`against={clip}`.*(?:{words}))|(?:{words}).*`against={clip}`") as error:
        load_model(str(clip), "cpu", argument="against", stretch=length is not None, max_text_length=length)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_the_image_processors_of_detectors_and_captioners(tmp_path):
    for kind, make, load in (
        ("detector", make_yolos, lambda name: load_detector(name, choose_device("cpu"))),
        ("detector", make_sam, lambda name: load_detector(name, choose_device("cpu"))),
        ("model", make_vlm, Captioner.load),
    ):
        for key, value in (("image_std", [0, 0, 0]), ("image_mean", [0.5, 0.5])):
            (tmp_path / f"{make.__name__}-{key}").mkdir()
            folder = make(tmp_path / f"{make.__name__}-{key}")
            for path in folder.glob("*processor_config.json"):
                change = {key: value}
                settings(lambda config, change=change: config.get("image_processor", config).update(change), path.name)(
                    folder
                )
            with pytest.raises(ValueError, match=f"`{kind}={folder}`.*image processor (?:makes|cannot).*`{key}`"):
                load(str(folder))


def test_an_intact_checkpoint_loads(clip):
    model, processor = load_model(str(clip), "cpu")
    assert model.config.text_config.max_position_embeddings == 77
    assert processor(text=["a"])["input_ids"].shape[0] == 1
    assert (
        load_model(str(clip), "cpu", stretch=True, max_text_length=248)[0].config.text_config.max_position_embeddings
        == 248
    )
    assert check_model(str(clip)).model_type == "clip"


def test_from_base_does_not_initialize_weights(clip):
    weights(lambda tensors: tensors.pop("text_projection.weight"))(clip)
    with pytest.raises(ValueError, match=r"CLIPModel: text_projection\.weight is missing"):
        FastGoalCLIPModel.from_base(str(clip))


def test_missing_checkpoints(tmp_path):
    for name, reason in (
        ("owner/nothing", "cannot be loaded: .*no such folder here, so the Hub was asked"),
        (str(tmp_path / "nothing"), "does not exist.*Name a folder"),
        ("../nothing", "does not exist.*Name a folder"),
    ):
        with pytest.raises(ValueError, match=rf"`model={name}` {reason}"):
            load_model(name, "cpu")


CODE = "import pathlib\npathlib.Path({mark!r}).touch()\nclass Evil: pass\n"


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "processor_config.json"])
@pytest.mark.parametrize("known", [True, False])
def test_code_of_a_checkpoint_is_not_run(clip, tmp_path, monkeypatch, file, known):
    mark = tmp_path / "it-ran"
    (clip / "evil.py").write_text(CODE.format(mark=str(mark)))
    kinds = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor")
    maps = {kind: ["evil.Evil", "evil.Evil"] if kind == "AutoTokenizer" else "evil.Evil" for kind in kinds}

    def change(config):
        config["auto_map"] = maps
        if not known:
            key = {"config.json": "model_type", "tokenizer_config.json": "tokenizer_class"}.get(file, "processor_class")
            config[key] = "Evil"

    if not (clip / file).exists():
        (clip / file).write_text("{}")
    settings(change, file)(clip)
    monkeypatch.setattr(builtins, "input", lambda *args: pytest.fail("it asked"))
    monkeypatch.setattr("transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE", 2)
    for load in (
        lambda: load_model(str(clip), "cpu"),
        lambda: load_model(str(clip), "cpu", stretch=True, max_text_length=248),
        lambda: load_detector(str(clip), choose_device("cpu")),
    ):
        with contextlib.suppress(ValueError):
            load()
    assert not mark.exists()


@pytest.mark.parametrize(("base", "other"), [("clip", "siglip2"), ("siglip2", "metaclip2"), ("siglip", "clip")])
def test_the_tokenizer_of_another_model_is_refused(base, other, tiny_bases, tmp_path):
    """Smaller or larger than the model's own; the message names both sizes."""
    folder = shutil.copytree(tiny_bases[base], tmp_path / "model")
    for path in (*folder.glob("token*"), *folder.glob("spiece*"), *folder.glob("vocab*")):
        path.unlink()
    tokenizer = AutoTokenizer.from_pretrained(tiny_bases[other])
    tokenizer.save_pretrained(folder)
    embeddings = AutoConfig.from_pretrained(folder).text_config.vocab_size
    assert len(tokenizer) != embeddings
    sizes = rf"tokenizer has {len(tokenizer)} tokens, .* {embeddings}"
    for load in (
        lambda: load_model(str(folder), "cpu"),
        lambda: load_model(str(folder), "cpu", stretch=True),
        lambda: FastGoalProcessor.from_base(str(folder)),
    ):
        with pytest.raises(ValueError, match=sizes):
            load()


@pytest.mark.parametrize(("padding", "is_refused"), [(0, False), (62, False), (64, True), (-1, True)])
def test_embeddings_may_be_padded(padding, is_refused, tiny_clip):
    processor, config = FastGoalProcessor.from_base(str(tiny_clip)), AutoConfig.from_pretrained(tiny_clip)
    config.text_config.vocab_size += padding
    with pytest.raises(ValueError, match="514 tokens") if is_refused else contextlib.nullcontext():
        processor.require_model(config)
