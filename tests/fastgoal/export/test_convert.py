"""Convert files of other projects, made of random models: every weight arrives, nothing is dropped or executed."""

import os
import pickle
import re

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer, CLIPModel

from fastgoal import FastGoalProcessor
from fastgoal.cli import main
from fastgoal.export.convert import convert, read_state_dict
from fastgoal.modeling_fastgoal import stretch_positions

LAYERS = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
POSITIONS = "text_model.embeddings.position_embedding.weight"


@pytest.fixture(scope="module")
def clip(tiny_clip):
    """A model with other weights than the base, so that a weight that does not arrive shows."""
    config = CLIPModel.from_pretrained(tiny_clip).config
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = CLIPModel(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def openai_layout(state):
    """Return the weights with the names and shapes of OpenAI's CLIP: the inverse of the conversion."""
    old = {
        "logit_scale": state["logit_scale"],
        "positional_embedding": state[POSITIONS],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "text_projection": state["text_projection.weight"].T,
        "ln_final.weight": state["text_model.final_layer_norm.weight"],
        "ln_final.bias": state["text_model.final_layer_norm.bias"],
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T,
    }
    for kind in ("weight", "bias"):
        old[f"visual.ln_pre.{kind}"] = state[f"vision_model.pre_layrnorm.{kind}"]
        old[f"visual.ln_post.{kind}"] = state[f"vision_model.post_layernorm.{kind}"]
        for tower, prefix in (("text_model", "transformer"), ("vision_model", "visual.transformer")):
            for layer in range(2):
                new = f"{tower}.encoder.layers.{layer}"
                block = f"{prefix}.resblocks.{layer}"
                old[f"{block}.attn.in_proj_{kind}"] = torch.cat(
                    [state[f"{new}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
                )
                old[f"{block}.attn.out_proj.{kind}"] = state[f"{new}.self_attn.out_proj.{kind}"]
                for name, short in LAYERS.items():
                    old[f"{block}.{short}.{kind}"] = state[f"{new}.{name}.{kind}"]
    return {name: tensor.clone().contiguous() for name, tensor in old.items()}


def check(output, expected):
    loaded = AutoModel.from_pretrained(output)
    assert type(loaded) is CLIPModel
    state = loaded.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
    processor = FastGoalProcessor.from_pretrained(output)
    assert processor.tokenizer.model_max_length == loaded.config.text_config.max_position_embeddings == 248
    assert (output / "model.safetensors").is_file()
    assert (output / "README.md").is_file()
    assert (output / "handler.py").is_file()
    assert not [*output.rglob("*.bin"), *output.rglob("*.pt"), *output.rglob("*.pth")]


def stretched(state):
    return {**state, POSITIONS: stretch_positions(state[POSITIONS], 248)}


def test_open_clip(clip, tiny_clip, tmp_path):
    state = clip.state_dict()
    file = {"state_dict": {f"module.{name}": tensor for name, tensor in openai_layout(state).items()}, "epoch": 3}
    file["state_dict"]["module.attn_mask"] = torch.zeros(77, 77)
    torch.save(file, tmp_path / "epoch_3.pt")
    done = convert(tmp_path / "epoch_3.pt", str(tiny_clip), tmp_path / "out")
    check(tmp_path / "out", stretched(state))
    assert (done.layout, done.positions, done.max_text_length) == ("open_clip", 77, 248)
    assert done.ignored == ["epoch", "module.attn_mask"]


def test_open_clip_with_a_separate_text_tower(clip, tiny_clip, tmp_path):
    state = clip.state_dict()
    file = openai_layout(state)
    # Its projections may be linear layers, which are not transposed.
    del file["text_projection"]
    file["text_projection.weight"] = state["text_projection.weight"]
    own = ("visual.", "logit_scale")
    file = {name if name.startswith(own) else f"text.{name}": tensor for name, tensor in file.items()}
    save_file(file, tmp_path / "open_clip.safetensors")
    convert(tmp_path / "open_clip.safetensors", str(tiny_clip), tmp_path / "out")
    check(tmp_path / "out", stretched(state))


def test_long_clip(clip, tiny_clip, tmp_path):
    state = clip.state_dict()
    file = openai_layout(state)
    table = torch.randn(248, 32)
    # Long-CLIP reads these parts of the tables and never uses the rest.
    file["positional_embedding"] = torch.cat([table[:20], torch.full((228, 32), 9.0)])
    file["positional_embedding_res"] = torch.cat([torch.full((20, 32), 9.0), table[20:]])
    torch.save({name: tensor.half() for name, tensor in file.items()}, tmp_path / "longclip-B.pt")
    done = convert(tmp_path / "longclip-B.pt", str(tiny_clip), tmp_path / "out")
    check(tmp_path / "out", {name: t.half().float() for name, t in {**state, POSITIONS: table}.items()})
    assert (done.layout, done.positions, done.dropped) == ("long-clip", 248, [])


def test_goal(clip, tiny_clip, tmp_path):
    state = {**clip.state_dict(), POSITIONS: torch.randn(248, 32)}
    extra = {"text_model.embeddings.position_ids": torch.arange(248)[None]}
    torch.save({**state, **extra}, tmp_path / "goal_b16.pth")
    done = convert(tmp_path / "goal_b16.pth", str(tiny_clip), tmp_path / "out")
    check(tmp_path / "out", state)
    assert (done.layout, done.ignored) == ("transformers", [*extra])
    assert "goal_b16.pth (transformers layout)" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("rows", [77, 248])
def test_a_length_stretches_files_of_both_lengths(rows, clip, tiny_clip, tmp_path, capsys):
    state = {**clip.state_dict(), POSITIONS: torch.randn(rows, 32)}
    torch.save(state, tmp_path / "file.pt")
    command = ["convert", str(tmp_path / "file.pt"), "--base", str(tiny_clip), "--max-text-length"]
    assert main([*command, "512", "--output", str(tmp_path / "out")]) == 0
    assert f"stretched from {rows} to 512" in capsys.readouterr().out
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.state_dict()[POSITIONS], stretch_positions(state[POSITIONS], 512))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 512
    for length in (rows - 1, 1025):
        assert main([*command, str(length), "--output", str(tmp_path / "refused")]) == 2
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert [fact for fact in ("--max-text-length", str(length), "1024") if fact not in line] == []


def test_other_positions_are_kept(clip, tiny_clip, tmp_path):
    state = {**clip.state_dict(), POSITIONS: torch.randn(64, 32)}
    torch.save(state, tmp_path / "short.pt")
    done = convert(tmp_path / "short.pt", str(tiny_clip), tmp_path / "out")
    assert (done.positions, done.max_text_length) == (64, 64)
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "out").state_dict()[POSITIONS], state[POSITIONS])
    assert FastGoalProcessor.from_pretrained(tmp_path / "out").tokenizer.model_max_length == 64


def test_unknown_names_are_refused_and_listed(clip, tiny_clip, tmp_path, capsys):
    file = {**openai_layout(clip.state_dict()), "cross_net.gate": torch.ones(2), "logit_bias": torch.ones(1)}
    torch.save(file, tmp_path / "more.pt")
    command = ["convert", str(tmp_path / "more.pt"), "--base", str(tiny_clip), "--output", str(tmp_path / "out")]
    assert main(command) == 2
    assert "(2): cross_net.gate; logit_bias." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*command, "--drop-unmatched"]) == 0
    assert "cross_net.gate, logit_bias" in capsys.readouterr().out
    check(tmp_path / "out", stretched(clip.state_dict()))


def test_missing_weights_and_wrong_shapes_are_named(clip, tiny_clip, tmp_path):
    file = openai_layout(clip.state_dict())
    del file["visual.ln_pre.bias"]
    file["token_embedding.weight"] = torch.zeros(10, 32)
    torch.save(file, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"token_embedding\.weight must be \(514, 32\), got \(10, 32\)") as caught:
        convert(tmp_path / "other.pt", str(tiny_clip), tmp_path / "out", drop_unmatched=True)
    assert "(1): vision_model.pre_layrnorm.bias" in str(caught.value)


class Hostile:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_hostile_pickle_does_not_run(tiny_clip, tmp_path, save):
    trap = tmp_path / "it ran"
    save({"state_dict": {"logit_scale": torch.ones(())}, "extra": Hostile(trap)}, tmp_path / "hostile.pt")
    with pytest.raises(ValueError, match="not run"):
        convert(tmp_path / "hostile.pt", str(tiny_clip), tmp_path / "out")
    assert not trap.exists()
    # The trap works when the file is unpickled.
    if save is not torch.save:
        pickle.loads((tmp_path / "hostile.pt").read_bytes())
        assert trap.exists()


def test_files_without_a_state_dict_are_refused(tiny_clip, tmp_path):
    for name, content in (("text.pt", b"not a model"), ("text.safetensors", b"not a model"), ("empty.pt", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            read_state_dict(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="got list"):
        read_state_dict(tmp_path / "list.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    with pytest.raises(ValueError, match="TorchScript"):
        read_state_dict(tmp_path / "script.pt")
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        read_state_dict(tmp_path / "absent.pt")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("visual.layer1.0.conv1.weight", "ResNet"),
        ("text_decoder.resblocks.0.ln_1.weight", "CoCa"),
        ("vision_model.head.probe", "SigLIP"),
        ("visual.trunk.attn_pool.latent", "SigLIP"),
        ("visual.trunk.blocks.0.attn.q_proj.weight", "EVA"),
        ("visual.blocks.0.attn.q_bias", "EVA"),
        ("visual.trunk.cls_token", "timm"),
        ("text.transformer.encoder.layer.0.output.dense.weight", "BERT"),
    ],
)
def test_unsupported_models_are_named(tiny_clip, tmp_path, name, part):
    save_file({name: torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=rf"other\.safetensors.*{part}.*\({re.escape(name)}\)"):
        convert(tmp_path / "other.safetensors", str(tiny_clip), tmp_path / "out", drop_unmatched=True)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_not_written_into(tiny_clip, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"`output=.*empty folder"):
        convert(tmp_path / "weights.pt", str(tiny_clip), tmp_path)


def test_a_failed_conversion_leaves_nothing(clip, tiny_clip, tmp_path, monkeypatch):
    save_file(CLIPModel.from_pretrained(tiny_clip).state_dict(), tmp_path / "weights.safetensors")

    def fails(*args):
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("fastgoal.export.model_folder.write_model_card", fails)
        with pytest.raises(OSError, match="No space left"):
            convert(tmp_path / "weights.safetensors", str(tiny_clip), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]
    convert(tmp_path / "weights.safetensors", str(tiny_clip), tmp_path / "new")
    assert (tmp_path / "new" / "README.md").is_file()
    assert 'name = "new"' in (tmp_path / "new" / "README.md").read_text()


POSITIONS = "text_model.embeddings.position_embedding.weight"
OPENAI = {"visual.proj": torch.zeros(4, 4), "transformer.resblocks.0.ln_1.weight": torch.zeros(4)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({POSITIONS: torch.zeros(0, 16)}, r"text positions.*\(0, 16\)"),
        ({POSITIONS: torch.tensor(1.0)}, r"text positions.*\(\)"),
        ({"logit_scale": torch.zeros(2)}, r"logit_scale must be \(\), got \(2,\)"),
        ({"logit_scale": torch.tensor(1.0 + 2.0j)}, "logit_scale.*complex64"),
        (
            {"visual_projection.weight": torch.eye(16).to_sparse()},
            "visual_projection.weight.*sparse",
        ),
        ({"visual_projection.weight": torch.zeros(2, device="meta")}, "visual_projection.weight.*meta"),
    ],
)
def test_unusable_tensors_are_named(clip, tiny_clip, tmp_path, change, words):
    torch.save({**CLIPModel.from_pretrained(tiny_clip).state_dict(), **change}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=words) as error:
        convert(tmp_path / "weights.pt", str(tiny_clip), tmp_path / "new")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logit_scale": torch.zeros(2)}, "`source=.*does not fit `base="),
        ({"transformer.resblocks.0.attn.in_proj_weight": torch.tensor(1.0)}, "in_proj_weight.*query"),
        (
            {"positional_embedding": torch.tensor(1.0), "positional_embedding_res": torch.tensor(1.0)},
            "`positional_embedding_res`",
        ),
        ({"positional_embedding": torch.zeros(0, 4)}, r"text positions.*\(0, 4\)"),
    ],
)
def test_unusable_tensors_of_openai_are_named(tiny_clip, tmp_path, change, words):
    torch.save({**OPENAI, **change}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=words):
        convert(tmp_path / "weights.pt", str(tiny_clip), tmp_path / "new")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "words"),
    [(b"version https://git-lfs.github.com/spec/v1\n", "pointer of git-lfs"), (b"hello", "Save|create")],
)
def test_no_message_recommends_running_a_file(tiny_clip, tmp_path, suffix, content, words):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        convert(path, str(tiny_clip), tmp_path / "new")
    assert "weights_only" not in str(error.value)


def test_a_base_of_another_family_is_refused(tiny_bases, tmp_path):
    with pytest.raises(ValueError, match=r"`base=.*SigLIP"):
        convert(tmp_path / "file.pt", str(tiny_bases["siglip"]), tmp_path / "out")
