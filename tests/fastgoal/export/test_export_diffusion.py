"""Load exported text encoders with transformers and run them in pipelines of diffusers with tiny other parts."""

import json
import resource
import shutil

import pytest
import torch
from safetensors import safe_open
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from fastgoal import FastGoalModel, FastGoalProcessor, push
from fastgoal.cli import main
from fastgoal.export import export_diffusion as module
from fastgoal.export.export_diffusion import export_diffusion, text_state
from fastgoal.export.merge import merge

# 201 tokens of the tiny tokenizer, and the same with another token 180.
LETTERS = " ".join("abcdefghij"[index % 10] for index in range(199))
OTHER = " ".join("z" if index == 179 else "abcdefghij"[index % 10] for index in range(199))


@pytest.fixture(scope="module")
def slots():
    with pytest.MonkeyPatch.context() as patch:
        slot = module.Slot("clip_l", "a tiny pipeline", "quick_gelu", False)
        patch.setitem(module.SLOTS, (32, 2), slot)
        yield slot


@pytest.fixture(scope="module")
def model(tiny_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    FastGoalModel.from_base(str(tiny_clip)).save_pretrained(folder)
    FastGoalProcessor.from_base(str(tiny_clip)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(slots, model, tiny_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    done = export_diffusion(str(model), folder, base=str(tiny_clip))
    assert (done.slot, done.positions) == (slots, 248)
    return folder


def test_the_encoders_give_our_numbers(model, exported, tiny_clip):
    tokenizer = CLIPTokenizer.from_pretrained(exported / "tokenizer")
    inputs = tokenizer([LETTERS, "a dog"], padding="max_length", truncation=True, return_tensors="pt")
    assert inputs["input_ids"].shape == (2, 248)
    # Slow tokenizers of older versions read these two files.
    base = CLIPTokenizer.from_pretrained(tiny_clip)
    vocab = json.loads((exported / "tokenizer" / "vocab.json").read_text())
    merges = (exported / "tokenizer" / "merges.txt").read_text().splitlines()
    assert (vocab, merges[0], len(merges)) == (base.get_vocab(), "#version: 0.2", 1)
    ours = CLIPModel.from_pretrained(model)
    with torch.no_grad():
        hidden = ours.text_model(**inputs)
        for name, loader in (
            ("text_encoder", CLIPTextModel),
            ("text_encoder_with_projection", CLIPTextModelWithProjection),
        ):
            encoder, info = loader.from_pretrained(exported / name, output_loading_info=True)
            assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
            output = encoder(**inputs)
            torch.testing.assert_close(output.last_hidden_state, hidden.last_hidden_state)
        torch.testing.assert_close(output.text_embeds, ours.text_projection(hidden.pooler_output))


def test_the_drift_is_measured_as_a_slow_loop_measures_it(exported, model, tiny_clip, slots, tmp_path, capsys):
    ours, theirs = CLIPModel.from_pretrained(model).text_model, CLIPModel.from_pretrained(tiny_clip).text_model
    tokenizer = CLIPTokenizer.from_pretrained(tiny_clip)
    hidden, pooled = [], []
    for prompt in module.PROMPTS:
        ids = tokenizer(prompt, truncation=True, return_tensors="pt")["input_ids"]
        assert ids.shape[1] <= 77
        with torch.no_grad():
            mine, base = ours(ids), theirs(ids)
        hidden += torch.cosine_similarity(mine.last_hidden_state[0], base.last_hidden_state[0], dim=-1).tolist()
        pooled += torch.cosine_similarity(mine.pooler_output, base.pooler_output).tolist()
    drift = json.loads((exported / "drift.json").read_text())
    assert drift["hidden_states"] == pytest.approx(sum(hidden) / len(hidden), abs=1e-5)
    assert drift["lowest_hidden_state"] == pytest.approx(min(hidden), abs=1e-5)
    assert drift["pooled"] == pytest.approx(sum(pooled) / len(pooled), abs=1e-5)
    assert drift["lowest_pooled"] == pytest.approx(min(pooled), abs=1e-5)
    # The card names the base by default.
    (model / "README.md").write_text(f"---\nbase_model: {tiny_clip}\n---\n")
    command = ["export", str(model), "--to", "diffusion", "--output", str(tmp_path / "new"), "--dtype", "fp16"]
    assert main(command) == 0
    assert f"{drift['lowest_pooled']:.4f} at least" in capsys.readouterr().out
    (model / "README.md").unlink()


@pytest.mark.parametrize(("dtype", "expected"), [("fp16", "F16"), ("bf16", "BF16"), ("fp32", "F32")])
def test_the_single_file(slots, model, tmp_path, dtype, expected):
    export_diffusion(str(model), tmp_path / "new", dtype=dtype, positions=77)
    state = CLIPModel.from_pretrained(model).state_dict()
    with safe_open(tmp_path / "new" / "clip_l.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        names = {*file.keys()}
        assert names == {name for name in state if name.startswith("text_model.")}
        assert {file.get_slice(name).get_dtype() for name in names} == {expected}
        positions = "text_model.embeddings.position_embedding.weight"
        cut = state[positions][:77].to(file.get_tensor(positions).dtype)
        assert torch.equal(file.get_tensor(positions), cut)
    for name in ("text_encoder", "text_encoder_with_projection"):
        config = json.loads((tmp_path / "new" / name / "config.json").read_text())
        assert config["max_position_embeddings"] == 77
    assert CLIPTokenizer.from_pretrained(tmp_path / "new" / "tokenizer").model_max_length == 77


def clip_l_keys():
    """The names and shapes of the published clip_l.safetensors, with 248 positions."""
    layer = {
        **{f"self_attn.{name}_proj": (768, 768) for name in ("q", "k", "v", "out")},
        **{"mlp.fc1": (3072, 768), "mlp.fc2": (768, 3072), "layer_norm1": (768,), "layer_norm2": (768,)},
    }
    shapes = {
        "text_model.embeddings.token_embedding.weight": (49408, 768),
        "text_model.embeddings.position_embedding.weight": (248, 768),
        "text_model.final_layer_norm.weight": (768,),
        "text_model.final_layer_norm.bias": (768,),
    }
    for index in range(12):
        for name, shape in layer.items():
            shapes[f"text_model.encoder.layers.{index}.{name}.weight"] = shape
            shapes[f"text_model.encoder.layers.{index}.{name}.bias"] = shape[:1]
    assert len(shapes) == 196
    return shapes


def test_the_keys_of_a_clip_l():
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    config = CLIPConfig(text_config={**text, "max_position_embeddings": 248}, projection_dim=768)
    with torch.device("meta"):
        state = text_state(CLIPModel(config), 248)
    assert state.pop("text_projection.weight").shape == (768, 768)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == clip_l_keys()
    slot = module.SLOTS[768, 12]
    assert (slot.name, slot.is_projected, slot.activation) == ("clip_l", False, "quick_gelu")


def test_an_adapter_is_exported_merged(slots, tiny_clip, pairs_folder, tmp_path):
    pytest.importorskip("peft")
    train = [
        "train",
        "--model",
        str(tiny_clip),
        "--train_data",
        str(pairs_folder),
        "--output_dir",
        str(tmp_path / "lora"),
    ]
    options = ["--lora_r", "2", "--max_steps", "1", "--use_cpu", "--report_to", "none", "--learning_rate", "0.1"]
    assert main([*train, *options]) == 0
    adapter = tmp_path / "lora" / "adapter"
    merge(str(adapter), tmp_path / "merged")
    sources = {"adapter": adapter, "merged": tmp_path / "merged", "lora": tmp_path / "lora"}
    for name, source in sources.items():
        export_diffusion(str(source), tmp_path / f"{name}-encoder")
    files = {(tmp_path / f"{name}-encoder" / "clip_l.safetensors").read_bytes() for name in sources}
    assert len(files) == 1


def test_bad_input(tiny_bases, model, slots, tmp_path, capsys):
    def refused(source, *options):
        command = ["export", str(source), "--to", "diffusion", "--output", str(tmp_path / "new"), *options]
        assert main(command) == 2
        assert not (tmp_path / "new").exists()
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "SigLIP" in (error := refused(tiny_bases["siglip"]))
    assert "clip_l 768x12" in error
    assert "MetaCLIP 2" in refused(tiny_bases["metaclip2"])
    assert "--positions" in (error := refused(tiny_bases["clip"]))
    assert "77" in error
    assert "from 77 to 248" in refused(model, "--positions", "64")
    assert "absent" in refused(model, "--base", str(tmp_path / "absent"))
    assert "--opset" in refused(model, "--opset", "18")
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(module.SLOTS, (32, 2))
        assert "32x2" in (error := refused(model))
        assert "clip_g 1280x32" in error
    broken = FastGoalModel.from_pretrained(model)
    weight = broken.text_model.final_layer_norm.weight.data
    for value, options, fact in ((1e6, ["--dtype", "fp16"], "fp16"), (float("nan"), [], "NaN")):
        weight[0] = value
        broken.save_pretrained(tmp_path / "broken")
        FastGoalProcessor.from_pretrained(model).save_pretrained(tmp_path / "broken")
        assert fact in refused(tmp_path / "broken", *options)


def test_a_full_disk_leaves_nothing(slots, model, tmp_path, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        assert main(["export", str(model), "--to", "diffusion", "--output", str(tmp_path / "new")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "File too large" in error
    assert str(tmp_path / "new") in error
    assert [*tmp_path.iterdir()] == []


def test_a_push_sends_the_whole_folder(exported, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(exported, folder)
    planned = push(folder, "me/encoder", dry_run=True)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {*planned.files} == files
    assert planned.left_out == []
    (folder / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(ValueError, match=r"incomplete without tokenizer/merges\.txt"):
        push(folder, "me/encoder", dry_run=True)


def test_another_activation_than_that_of_comfyui_is_a_warning(slots, tiny_clip, tmp_path, caplog):
    gelu = CLIPModel.from_pretrained(tiny_clip)
    gelu.config.text_config.hidden_act = "gelu"
    gelu.save_pretrained(tmp_path / "model")
    FastGoalProcessor.from_base(str(tiny_clip)).save_pretrained(tmp_path / "model")
    export_diffusion(str(tmp_path / "model"), tmp_path / "new", positions=77)
    assert any("gelu" in record.message and "ComfyUI" in record.message for record in caplog.records)


def changed(pipeline, **options):
    """Return whether the output changes when only token 180 changes."""
    results = []
    for prompt in (LETTERS, OTHER):
        generator = torch.Generator().manual_seed(0)
        common = {"height": 16, "width": 16, "num_inference_steps": 1, "generator": generator, "output_type": "latent"}
        with torch.no_grad():
            results.append(pipeline(prompt, **common, **options).images)
    return not torch.equal(*results)


@pytest.fixture
def parts(exported):
    pytest.importorskip("diffusers")
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"block_out_channels": (8,), "norm_num_groups": 4, "sample_size": 16}
    return {
        "vae": AutoencoderKL(**blocks, down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",)),
        "tokenizer": CLIPTokenizer.from_pretrained(exported / "tokenizer"),
        "text_encoder": CLIPTextModel.from_pretrained(exported / "text_encoder"),
    }


UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}


@pytest.mark.slow
def test_stable_diffusion_reads_token_180(parts, exported):
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    others = {"scheduler": DDIMScheduler(), "safety_checker": None, "feature_extractor": None}
    unet = UNet2DConditionModel(**UNET, cross_attention_dim=32)
    pipeline = StableDiffusionPipeline(**parts, unet=unet, **others, requires_safety_checker=False)
    assert changed(pipeline)
    # With a tokenizer of 77 tokens the pipeline would cut the prompt.
    pipeline.tokenizer.model_max_length = 77
    assert not changed(pipeline)


@pytest.mark.slow
def test_stable_diffusion_xl_reads_token_180(parts, exported):
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        **UNET,
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 16,
    )
    second = CLIPTextModelWithProjection.from_pretrained(exported / "text_encoder_with_projection")
    tokenizer = CLIPTokenizer.from_pretrained(exported / "tokenizer")
    options = {"text_encoder_2": second, "tokenizer_2": tokenizer, "add_watermarker": False}
    pipeline = StableDiffusionXLPipeline(**parts, unet=unet, scheduler=DDIMScheduler(), **options)
    assert changed(pipeline)


@pytest.mark.slow
def test_flux_reads_token_180(parts, exported):
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    t5 = T5EncoderModel(T5Config(vocab_size=514, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)).eval()
    vae = AutoencoderKL(
        block_out_channels=(8,),
        norm_num_groups=4,
        latent_channels=1,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        shift_factor=0.1,
    )
    pipeline = FluxPipeline(
        **{**parts, "vae": vae},
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder_2=t5,
        tokenizer_2=CLIPTokenizer.from_pretrained(exported / "tokenizer"),
        transformer=transformer,
    )
    options = {"prompt_2": "a dog", "max_sequence_length": 16}
    assert changed(pipeline, **options)
    # As in a pipeline that was built with another tokenizer.
    pipeline.tokenizer_max_length = 77
    assert not changed(pipeline, **options)
