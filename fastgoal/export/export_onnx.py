"""Export a model to ONNX in the layout that transformers.js loads, checked against PyTorch."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from torch import nn
from torch.nn.functional import cosine_similarity, normalize

from fastgoal.hub_cards.cards import CARD, card_name, is_hub_id
from fastgoal.modeling_fastgoal.families_fastgoal import family_of
from fastgoal.modeling_fastgoal.towers_fastgoal import end_texts, logit_bias, text_positions
from fastgoal.processing.checkpoints.load import load_model
from fastgoal.processing.files import write_json, write_text

from .model_folder import new_folder, require_new_folder
from .onnx_files import (
    LOWEST_OPSET,
    PRECISIONS,
    OnnxModel,
    check_opset,
    check_precisions,
    import_onnx,
    save_onnx,
    write_precision,
)
from .tokenizer_json import write_tokenizer

TOLERANCE = 1e-4
TOWERS = ("text_model", "vision_model")
LANCZOS = 1


@dataclass(frozen=True)
class Precision:
    """What a precision costs.

    Attributes:
        files: Sizes in bytes of its files by name.
        image_cosine: Lowest cosine similarity of an image's embedding to that of fp32.
        text_cosine: The same for texts.
        metrics: Recalls on `data`; empty without data.
    """

    files: dict[str, int]
    image_cosine: float
    text_cosine: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class OnnxExport:
    """The result of `export_onnx`.

    Attributes:
        differences: Largest difference of each fp32 graph from PyTorch by file name, for other numbers of rows and
            tokens than the traced ones; logits are divided by the largest one.
        precisions: Cost of each precision by its name.
    """

    differences: dict[str, float]
    precisions: dict[str, Precision]


def export_onnx(
    model: str,
    output: str | os.PathLike[str],
    precision: Sequence[str] = ("fp32",),
    data: Any = None,
    opset: int = LOWEST_OPSET,
) -> OnnxExport:
    """Write a folder that transformers.js 4 and ONNX Runtime load, for any number of rows and of tokens.

    `onnx/vision_model.onnx` maps `pixel_values` `(images, 3, height, width)` to `image_embeds` `(images, dim)`.
    `onnx/text_model.onnx` maps `input_ids` and `attention_mask`, `(texts, tokens)`, to `text_embeds` `(texts, dim)`.
    `onnx/model.onnx` takes all three and returns `logits_per_image`, `logits_per_text` and both embeddings. Embeddings
    are normalized. A SigLIP has no `attention_mask`, and each tower's output is called `pooler_output`. A caption that
    was cut without EOS, as transformers.js cuts it, gets EOS as its last token.

    The exported image processor resizes with Lanczos, because transformers.js resizes with an antialiased filter only
    for Lanczos.

    Args:
        model: Folder or Hub id of a model or adapter.
        output: Folder to write, new or empty.
        precision: `fp32`, `fp16` and `int8` (dynamic, weights of matrix products and embeddings), in any combination.
        data: Anything that `evaluate` takes, to measure the recall of each precision on.
        opset: ONNX operator set.

    Raises:
        ImportError: ONNX is not installed.
        ValueError: The model cannot be loaded, an argument is invalid, or ONNX Runtime does not have the opset or gives
            embeddings that differ by more than 1e-4. In that case nothing is written.
    """
    import_onnx()
    check_precisions(precision)
    check_opset(opset)
    folder = require_new_folder(output)
    source = _open(data)
    loaded, processor = load_model(model, "cpu")
    loaded.set_attn_implementation("eager")
    graphs = _graphs(loaded, processor.tokenizer.eos_token_id)
    with new_folder(folder) as draft:
        onnx = draft / "onnx"
        onnx.mkdir()
        differences = {f"{graph.name}.onnx": _write(graph, onnx, opset) for graph in graphs}
        precisions: dict[str, Precision] = {}
        reference = None
        for name in dict.fromkeys(("fp32", *precision)):
            if name != "fp32":
                for graph in graphs:
                    write_precision(onnx / f"{graph.name}.onnx", name)
            embeds, metrics = _embed(OnnxModel(onnx, name, loaded), processor, source, graphs)
            reference = reference or embeds
            files = {path.name: path.stat().st_size for path in sorted(onnx.glob(f"*model{PRECISIONS[name]}.onnx*"))}
            cosines = [cosine_similarity(*pair).min().item() for pair in zip(embeds, reference, strict=True)]
            precisions[name] = Precision(files, cosines[0], cosines[1], metrics)
        if "fp32" not in precision:
            for name in precisions.pop("fp32").files:
                (onnx / name).unlink()
        _write_settings(draft, loaded, processor, precisions)
        write_text(draft / CARD, _card(card_name(folder.name), model, precisions))
    return OnnxExport(differences, precisions)


class _ImageTower(nn.Module):
    """Pixels to normalized embeddings."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return normalize(self.model.get_image_features(pixel_values=pixel_values).pooler_output, dim=-1)


class _TextTower(nn.Module):
    """Token ids to normalized embeddings."""

    def __init__(self, model: Any, end: int) -> None:
        super().__init__()
        self.model, self.end = model, end

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        ids = end_texts(input_ids, self.model, self.end)
        return normalize(self.model.get_text_features(ids, attention_mask).pooler_output, dim=-1)


class _BothTowers(nn.Module):
    """Token ids and pixels to logits and embeddings."""

    def __init__(self, texts: _TextTower, images: _ImageTower) -> None:
        super().__init__()
        self.texts, self.images = texts, images

    def forward(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        text_embeds, image_embeds = self.texts(input_ids, attention_mask), self.images(pixel_values)
        logits = text_embeds @ image_embeds.T * self.texts.model.logit_scale.exp()
        bias = logit_bias(self.texts.model)
        logits = logits if bias is None else logits + bias
        return logits.T, logits, text_embeds, image_embeds


@dataclass(frozen=True)
class _Graph:
    """A module to export, its inputs with their dynamic shapes, its outputs, and samples to trace and check it with."""

    name: str
    module: nn.Module
    inputs: dict[str, Any]
    outputs: list[str]
    samples: list[tuple[torch.Tensor, ...]]


def _graphs(model: Any, end: int) -> list[_Graph]:
    """Return the graphs of both towers and of the whole model."""
    config, is_siglip = model.config, family_of(model).pools_last
    size, length = config.vision_config.image_size, text_positions(config)
    generator = torch.Generator().manual_seed(0)

    def pixels(rows: int) -> tuple[torch.Tensor, ...]:
        return (torch.randn(rows, 3, size, size, generator=generator),)

    def tokens(rows: int, width: int) -> tuple[torch.Tensor, ...]:
        """Return random ids. The first row was cut before EOS; each one after it is one token shorter than the last."""
        ids = torch.randint(config.text_config.vocab_size, (rows, width), generator=generator)
        ids[ids == end] -= 1
        mask = torch.ones_like(ids)
        for row in range(1, rows):
            ids[row, width - row :] = end
            mask[row, width + 1 - row :] = 0
        return (ids,) if is_siglip else (ids, mask)

    Dim = torch.export.Dim
    texts, images, width = (
        Dim("texts", min=1, max=4096),
        Dim("images", min=1, max=4096),
        Dim("tokens", min=2, max=length),
    )
    text_inputs = {name: {0: texts, 1: width} for name in ("input_ids", "attention_mask")[: 1 if is_siglip else 2]}
    image_inputs: dict[str, Any] = {"pixel_values": {0: images}}
    names = ["pooler_output"] * 2 if is_siglip else ["text_embeds", "image_embeds"]
    text_samples, image_samples = [tokens(2, min(16, length)), tokens(3, length), tokens(1, 7)], [pixels(2), pixels(3)]
    text_tower, image_tower = _TextTower(model, end), _ImageTower(model)
    return [
        _Graph("text_model", text_tower, text_inputs, names[:1], text_samples),
        _Graph("vision_model", image_tower, image_inputs, names[1:], image_samples),
        _Graph(
            "model",
            _BothTowers(text_tower, image_tower),
            {"input_ids": text_inputs["input_ids"], **image_inputs, **text_inputs},
            ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"],
            [(ids, *pixels(rows), *mask) for (ids, *mask), rows in zip(text_samples, (3, 1, 2), strict=True)],
        ),
    ]


def _write(graph: _Graph, folder: Path, opset: int) -> float:
    """Write the fp32 file of a graph, and return its largest difference from PyTorch."""
    import onnxruntime

    path = folder / f"{graph.name}.onnx"
    with torch.no_grad(), warnings.catch_warnings():
        # Inputs that share an axis, such as both inputs of texts, are as intended.
        warnings.filterwarnings("ignore", "# The axis name: .* shares the same shape constraints", UserWarning)
        program: Any = torch.onnx.export(
            graph.module.eval(),
            graph.samples[0],
            input_names=list(graph.inputs),
            output_names=graph.outputs,
            dynamic_shapes=tuple(graph.inputs.values()),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    proto = program.model_proto
    if {entry.domain: entry.version for entry in proto.opset_import}[""] != opset:
        raise ValueError(f"`opset` must be one that torch {torch.__version__} writes, got {opset}. Use {LOWEST_OPSET}.")
    save_onnx(proto, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    difference = 0.0
    for sample in graph.samples:
        with torch.no_grad():
            expected = graph.module(*sample)
        feed = {name: tensor.numpy() for name, tensor in zip(graph.inputs, sample, strict=True)}
        for ours, theirs in zip(
            expected if isinstance(expected, tuple) else (expected,), session.run(graph.outputs, feed), strict=True
        ):
            error = (torch.from_numpy(theirs) - ours).abs().max() / ours.abs().max().clamp(min=1)
            difference = max(difference, error.item())
    if not difference <= TOLERANCE:
        raise ValueError(f"{path.name} differs from PyTorch by {difference:.2g}, and the limit is {TOLERANCE:g}.")
    return difference


def _open(data: Any) -> Any:
    if data is None:
        return None
    from fastgoal.trainer.evaluation.protocols.registry import open_protocol

    return open_protocol("folder", data)


def _embed(
    model: OnnxModel, processor: Any, source: Any, graphs: list[_Graph]
) -> tuple[tuple[torch.Tensor, torch.Tensor], dict[str, float]]:
    """Embed the images and captions of a source and measure recall, or embed the samples if there is no source."""
    if source is None:
        texts, images = (graph.samples for graph in graphs[:2])
        return (
            torch.cat([model.get_image_features(*sample).pooler_output for sample in images]),
            torch.cat([model.get_text_features(*sample).pooler_output for sample in texts]),
        ), {}
    from fastgoal.trainer.evaluation.measures.cutoffs import KS
    from fastgoal.trainer.evaluation.measures.embeddings import encode_source

    encoded = encode_source(model, processor, source)
    return (encoded.image_embeds, encoded.text_embeds), encoded.ranks().summary(KS)


def _write_settings(folder: Path, model: Any, processor: Any, precisions: dict[str, Precision]) -> None:
    """Write the configuration, the image processor, and the tokenizer."""
    config = model.config.to_dict()
    config.pop("auto_map", None)
    large = {name.removesuffix("_data"): 1 for cost in precisions.values() for name in cost.files if "onnx_" in name}
    settings: dict[str, Any] = {"use_external_data_format": large} if large else {}
    if not {"fp32", "int8"} <= {*precisions}:
        # Otherwise Node loads fp32, and browsers load int8.
        name = next(iter(precisions))
        settings["dtype"] = "q8" if name == "int8" else name
    if settings:
        config["transformers.js_config"] = settings
    write_json(folder / "config.json", config)
    images = processor.image_processor.to_dict()
    images.pop("auto_map", None)
    write_json(folder / "preprocessor_config.json", images | {"resample": LANCZOS})
    write_tokenizer(folder, processor.tokenizer, text_positions(model))


def _card(name: str, model: str, precisions: dict[str, Precision]) -> str:
    """Return the card of an exported folder, with the cost of each precision."""
    data = ModelCardData(
        library_name="transformers.js",
        pipeline_tag="zero-shot-image-classification",
        base_model=model if is_hub_id(model) else None,
        tags=["fastgoal", "onnx"],
    )
    rows = [
        f"| {precision} | {sum(cost.files.values()) / 1e6:.1f} MB | {cost.image_cosine:.6f} | {cost.text_cosine:.6f} |"
        for precision, cost in precisions.items()
    ]
    return "\n".join(
        [
            *("---", data.to_yaml(), "---", "", f"# {name}", ""),
            "ONNX files of both towers (`onnx/text_model.onnx`, `onnx/vision_model.onnx`) and of the model for the",
            "pipeline `zero-shot-image-classification` (`onnx/model.onnx`), written by fastgoal for transformers.js.",
            *("", "| precision | size | lowest cosine to fp32, images | texts |", "|---|---|---|---|", *rows, ""),
        ]
    )
