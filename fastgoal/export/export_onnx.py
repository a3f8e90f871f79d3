"""Export both towers of a model to ONNX, checked against PyTorch."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastgoal.modeling_fastgoal.families_fastgoal import family_of
from fastgoal.modeling_fastgoal.towers_fastgoal import end_of_text, text_positions
from fastgoal.processing.checkpoints.load import load_model
from fastgoal.processing.files import draft_beside, merge_folder, sweep_drafts

TOLERANCE = 1e-4
# Weights that an earlier export stored next to its .onnx files, and that the new one may not have.
DATA_FILES = re.compile(r"(vision|text)_model\.onnx\.data")


class _ImageTower(nn.Module):
    """Pixels to normalized embeddings."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.model.get_image_features(pixel_values=pixel_values).pooler_output, dim=-1)


class _TextTower(nn.Module):
    """Token ids to normalized embeddings."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        features = self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        return nn.functional.normalize(features.pooler_output, dim=-1)


@dataclass(frozen=True)
class _Export:
    """A tower, the names of its inputs and output, its dynamic shapes, and samples to trace and check it with."""

    name: str
    tower: nn.Module
    inputs: list[str]
    output: str
    shapes: tuple[Any, ...]
    samples: list[tuple[torch.Tensor, ...]]


def export_onnx(model: str, output: str | os.PathLike[str]) -> dict[str, float]:
    """Write `vision_model.onnx` and `text_model.onnx`, for any number of rows and of tokens.

    `vision_model.onnx` maps `pixel_values` `(images, 3, height, width)` to `image_embeds` `(images, dim)`.
    `text_model.onnx` maps `input_ids` and `attention_mask`, `(texts, tokens)`, to `text_embeds` `(texts, dim)`. For
    SigLIP, it takes only `input_ids`, padded to the model's length. Embeddings are normalized.

    Args:
        model: Folder or Hub id of a model.
        output: Folder for the two files.

    Returns:
        Largest difference from PyTorch by file name, over batches and lengths other than the traced ones.

    Raises:
        ImportError: ONNX is not installed.
        ValueError: The model cannot be loaded, or the embeddings of ONNX Runtime differ by more than 1e-4. In that case
            nothing is written.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error}. ONNX export needs more packages: pip install 'fastgoal[onnx]'") from error
    loaded, _ = load_model(model, "cpu")
    loaded.set_attn_implementation("eager")
    config: Any = loaded.config
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)

    has_mask = not family_of(loaded).pools_last
    size, length = config.vision_config.image_size, text_positions(config)
    generator = torch.Generator().manual_seed(0)

    def pixels(rows: int) -> tuple[torch.Tensor, ...]:
        return (torch.randn(rows, 3, size, size, generator=generator),)

    def tokens(rows: int, width: int) -> tuple[torch.Tensor, ...]:
        """Return random ids with EOS and padding; each row is one token shorter than the one before it."""
        ids = torch.randint(config.text_config.vocab_size, (rows, width), generator=generator)
        mask = torch.ones_like(ids)
        for row in range(rows):
            ids[row, width - 1 - row :] = end_of_text(loaded)
            mask[row, width - row :] = 0
        return (ids, mask) if has_mask else (ids,)

    names = ["input_ids", "attention_mask"] if has_mask else ["input_ids"]
    rows, width = torch.export.Dim("rows", min=1, max=4096), torch.export.Dim("tokens", min=2, max=length)
    image_samples = [pixels(2), pixels(3)]
    text_samples = [tokens(2, min(16, length)), tokens(3, length), tokens(1, 7)]
    shapes = tuple({0: rows, 1: width} for _ in names)
    exports = [
        _Export("vision_model", _ImageTower(loaded), ["pixel_values"], "image_embeds", ({0: rows},), image_samples),
        _Export("text_model", _TextTower(loaded), names, "text_embeds", shapes, text_samples),
    ]
    sweep_drafts(output)
    draft = draft_beside(output / "onnx")
    draft.mkdir()
    try:
        differences = {f"{export.name}.onnx": _write(export, draft) for export in exports}
        merge_folder(draft, output, last="text_model.onnx", replaced=DATA_FILES)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return differences


def _write(export: _Export, folder: Path) -> float:
    """Write the file of a tower, and return its largest difference from PyTorch."""
    import onnxruntime

    path = folder / f"{export.name}.onnx"
    with torch.no_grad():
        torch.onnx.export(
            export.tower.eval(),
            export.samples[0],
            str(path),
            input_names=export.inputs,
            output_names=[export.output],
            dynamic_shapes=export.shapes,
            dynamo=True,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    difference = 0.0
    for sample in export.samples:
        with torch.no_grad():
            expected = export.tower(*sample)
        feed = {name: tensor.numpy() for name, tensor in zip(export.inputs, sample, strict=True)}
        result = torch.from_numpy(session.run([export.output], feed)[0])
        difference = max(difference, (result - expected).abs().max().item())
    if not difference <= TOLERANCE:
        raise ValueError(f"{path.name} differs from PyTorch by {difference:.2g}, and the limit is {TOLERANCE:g}.")
    return difference
