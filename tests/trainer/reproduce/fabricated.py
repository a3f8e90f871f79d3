"""A data root with all datasets of the rows in small, and tiny models."""

import json
from pathlib import Path

import torch

from tests.published_files import write, write_dci, write_docci, write_goal_pairs, write_karpathy
from tests.tiny_models import make_clip, make_yolos


def make_root(root: Path) -> Path:
    write_docci(root / "docci", train=24, test=12, qual_dev=1, qual_test=2)
    pairs = [(f"train_{index:05d}.jpg", index) for index in range(24)]
    write_goal_pairs(root / "docci" / "docci_segment_sim_bbox_del_org.json", pairs)
    write_dci(root / "dci", 20, without_long=1)
    write_goal_pairs(root / "dci" / "DCI_segment_sim_bbox_del_org.json", [(f"sa_{n}.jpg", 1000 + n) for n in range(16)])
    tests = [{"filename": f"../there/photos/sa_{n}.jpg", "caption": f"Picture {n}."} for n in range(16, 19)]
    write(root / "dci" / "DCI_test.json", tests)
    write_karpathy(root / "coco", "coco", 6)
    write_karpathy(root / "flickr30k", "flickr30k", 6)
    own = root / "own"
    write_docci(own / "docci", train=20)
    lines = (own / "docci" / "docci_descriptions.jsonlines").read_text().splitlines()
    rows = [{"file_name": row["image_file"], "caption": row["description"]} for row in map(json.loads, lines)]
    write(own / "docci" / "images" / "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    return root


def make_models(folder: Path) -> tuple[Path, Path]:
    """Return a base and a detector."""
    return make_clip(folder / "clip"), make_yolos(folder / "yolos")


def write_long_clip(base: Path, path: Path) -> None:
    """Write weights with the names and the two position tables of Long-CLIP's file."""
    from transformers import CLIPModel

    state = CLIPModel.from_pretrained(base).state_dict()
    names = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.final_layer_norm": "ln_final",
        "vision_model.embeddings.patch_embedding": "visual.conv1",
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "vision_model.pre_layrnorm": "visual.ln_pre",
        "vision_model.post_layernorm": "visual.ln_post",
    }
    theirs: dict[str, torch.Tensor] = {"logit_scale": state["logit_scale"]}
    for tower, prefix in (("text_model", ""), ("vision_model", "visual.")):
        for layer in range(2):
            ours, block = f"{tower}.encoder.layers.{layer}.", f"{prefix}transformer.resblocks.{layer}."
            for part in ("weight", "bias"):
                fused = [state[f"{ours}self_attn.{letter}_proj.{part}"] for letter in "qkv"]
                theirs[f"{block}attn.in_proj_{part}"] = torch.cat(fused)
                for old, new in (
                    ("self_attn.out_proj", "attn.out_proj"),
                    ("layer_norm1", "ln_1"),
                    ("layer_norm2", "ln_2"),
                    ("mlp.fc1", "mlp.c_fc"),
                    ("mlp.fc2", "mlp.c_proj"),
                ):
                    theirs[f"{block}{new}.{part}"] = state[f"{ours}{old}.{part}"]
    for name, tensor in state.items():
        for old, new in names.items():
            if name.startswith(old):
                theirs[new + name.removeprefix(old)] = tensor
    theirs["text_projection"] = state["text_projection.weight"].T
    theirs["visual.proj"] = state["visual_projection.weight"].T
    positions = state["text_model.embeddings.position_embedding.weight"]
    theirs["positional_embedding"] = torch.cat([positions[:20], torch.zeros(228, positions.shape[1])])
    theirs["positional_embedding_res"] = torch.randn(248, positions.shape[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: tensor.clone().contiguous() for name, tensor in theirs.items()}, path)
