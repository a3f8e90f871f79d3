"""Both towers as ONNX files, checked against PyTorch."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastgoal.modeling_fastgoal.families_fastgoal import family_of
from fastgoal.modeling_fastgoal.towers_fastgoal import end_of_text, text_positions
from fastgoal.processing.checkpoints.load import load_model
from fastgoal.processing.files import draft_beside, merge_folder, sweep_drafts

TOLERANCE = 1e-4
# Weights beside an .onnx file of an earlier export, which the new one need not have.
DATA_FILES = re.compile(r"(vision|text)_model\.onnx\.data")


class _Tower(nn.Module):
    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip


class _ImageTower(_Tower):
    """Pixels to normalized embeddings."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.clip.get_image_features(pixel_values=pixel_values).pooler_output, dim=-1)


class _TextTower(_Tower):
    """Token ids to normalized embeddings."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        features = self.clip.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        return nn.functional.normalize(features.pooler_output, dim=-1)


def export_onnx(name: str, output: str | os.PathLike[str]) -> dict[str, float]:
    """Write `vision_model.onnx` and `text_model.onnx`, with any number of rows and, for texts, of tokens.

    The first takes `pixel_values` `(images, 3, height, width)` and gives `image_embeds`; the second takes `input_ids`
    and `attention_mask` `(texts, tokens)` and gives `text_embeds`; embeddings are normalized. Of a SigLIP it takes
    `input_ids` alone, which are padded to the model's length.

    Args:
        name: Folder or Hub id of a CLIP checkpoint.
        output: Folder for the two files; made if need be.

    Returns:
        Largest difference from PyTorch by file name, over batches and lengths other than the traced ones.

    Raises:
        ImportError: ONNX is not installed.
        ValueError: The checkpoint is no CLIP, or ONNX Runtime's embeddings differ by more than 1e-4; the file is then
            not left behind.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error}. ONNX export needs more packages: pip install 'fastgoal[onnx]'") from error
    clip, _ = load_model(name, "cpu")
    clip.set_attn_implementation("eager")
    config: Any = clip.config
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)

    size, length = config.vision_config.image_size, text_positions(config)
    generator = torch.Generator().manual_seed(0)

    def pixels(rows: int) -> tuple[torch.Tensor, ...]:
        return (torch.randn(rows, 3, size, size, generator=generator),)

    def tokens(rows: int, width: int) -> tuple[torch.Tensor, ...]:
        """Random ids with an end, each row one token shorter than the one before it, and padded."""
        end = end_of_text(clip)
        ids = torch.randint(config.text_config.vocab_size, (rows, width), generator=generator)
        mask = torch.ones_like(ids)
        for row in range(rows):
            ids[row, width - 1 - row :] = end
            mask[row, width - row :] = 0
        return (ids,) if siglip else (ids, mask)

    siglip = family_of(clip).pools_last
    names = ["input_ids"] if siglip else ["input_ids", "attention_mask"]
    rows, width = torch.export.Dim("rows", min=1, max=4096), torch.export.Dim("tokens", min=2, max=length)
    towers: list[tuple[str, nn.Module, list[str], str, Any, list[tuple[torch.Tensor, ...]]]] = [
        ("vision_model", _ImageTower(clip), ["pixel_values"], "image_embeds", ({0: rows},), [pixels(2), pixels(3)]),
        (
            "text_model",
            _TextTower(clip),
            names,
            "text_embeds",
            tuple({0: rows, 1: width} for _ in names),
            [tokens(2, min(16, length)), tokens(3, length), tokens(1, 7)],
        ),
    ]
    sweep_drafts(output)
    draft = draft_beside(output / "onnx")
    draft.mkdir()
    try:
        differences = _write_towers(towers, draft)
        merge_folder(draft, output, last="text_model.onnx", replaced=DATA_FILES)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return differences


def _write_towers(towers: list[Any], folder: Path) -> dict[str, float]:
    """Write the files, and compare each with PyTorch."""
    import onnxruntime

    differences = {}
    for tower, module, inputs, result, shapes, samples in towers:
        path = folder / f"{tower}.onnx"
        with torch.no_grad():
            torch.onnx.export(
                module.eval(),
                samples[0],
                str(path),
                input_names=inputs,
                output_names=[result],
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        difference = 0.0
        for sample in samples:
            with torch.no_grad():
                expected = module(*sample)
            feed = {key: tensor.numpy() for key, tensor in zip(inputs, sample, strict=True)}
            got = torch.from_numpy(session.run([result], feed)[0])
            difference = max(difference, (got - expected).abs().max().item())
        if not difference <= TOLERANCE:
            raise ValueError(f"{path.name} differs from PyTorch by {difference:.2g}, more than {TOLERANCE:g}.")
        differences[path.name] = difference
    return differences
