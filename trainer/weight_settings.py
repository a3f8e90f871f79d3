"""What the trained weights depend on apart from the arguments, compared when a training resumes."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow
from torch import nn
from transformers.trainer_utils import has_length

from fastgoal.processing.checkpoints.adapters import is_adapted
from fastgoal.processing.checkpoints.fingerprints import fingerprint

from .batches.rows import CHUNK, TrainingData, TrainingRow, is_table, source_of
from .batches.streams import StreamData

IMAGE_SETTINGS = ("size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std")


def data_settings(data: Any, processor: Any) -> dict[str, Any]:
    """Return what the rows of a training and the model's inputs depend on, by name, as JSON.

    Args:
        data: A training dataset as the trainer takes it.
        processor: The model's `FastGoalProcessor`, or None.
    """
    is_stream, source = isinstance(data, StreamData), source_of(data)
    rows = data.rows if is_stream else len(data) if has_length(data) else None
    return {
        "rows": rows,
        "data": rows_fingerprint(data) if source is None else source.fingerprint,
        "image_column": getattr(source, "image_column", None),
        "caption_column": getattr(source, "caption_column", None),
        "shuffle_window": data.window if is_stream else None,
        "processor": None if processor is None else _processor_mark(processor),
    }


def rows_fingerprint(data: Any) -> str | None:
    """Return a hash of rows in memory without decoded images; None for rows that are read one by one."""
    rows, digest = TrainingData.of(data), hashlib.sha256()
    if is_table(rows.data):
        images = [name for name, feature in rows.data.features.items() if hasattr(feature, "decode_example")]
        table = rows.data.select(range(len(rows))).remove_columns(images).with_format("arrow")
        for part in table.iter(CHUNK) if table.column_names else ():
            part = part.combine_chunks().replace_schema_metadata(None)
            sink = pyarrow.BufferOutputStream()
            with pyarrow.ipc.new_stream(sink, part.schema) as writer:
                writer.write_table(part)
            digest.update(sink.getvalue())
    elif isinstance(rows.data, Sequence):
        try:
            for row in map(TrainingRow.of, islice(rows.data, len(rows))):
                values = (row.caption, row.name, row.regions, row.sentences, row.pairs, row.short_captions)
                digest.update(repr((_stored_image(row.image), *values)).encode(errors="surrogatepass"))
        except (TypeError, ValueError):  # rows for a collator of the user's
            return None
    else:
        return None
    return digest.hexdigest()


def base_mark(model: nn.Module, is_pulled_to_start: bool) -> str | None:
    """Return a hash of the weights that a checkpoint does not hold and that the training depends on; None for none.

    Args:
        model: The model before its training.
        is_pulled_to_start: Whether the training pulls weights toward their initial values (L2-SP).
    """
    if not is_pulled_to_start and not is_adapted(model):
        return None
    used = {name: value for name, value in model.named_parameters() if is_pulled_to_start or not value.requires_grad}
    return fingerprint(used)


def replace_settings(optimizer: Any, scheduler: Any, given: Sequence[Mapping[str, Any]]) -> None:
    """Give an optimizer that has loaded its state the settings of `given`, its parameter groups before that.

    The learning rate is scaled by the ratio of the peak learning rates.
    """
    for group, before in zip(optimizer.param_groups, given, strict=True):
        if group.get("initial_lr"):
            group["lr"] = group["lr"] * before["initial_lr"] / group["initial_lr"]
        group.update({name: value for name, value in before.items() if name in group and name not in ("params", "lr")})
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]


def _stored_image(image: Any) -> Any:
    """Return the file name or the bytes of an image that is not decoded."""
    if isinstance(image, Mapping):
        return image.get("path"), image.get("bytes")
    return os.fspath(image) if isinstance(image, str | os.PathLike) else None


def _processor_mark(processor: Any) -> str:
    """Hash what turns an image and a text into inputs of the model."""
    tokenizer, images = processor.tokenizer, processor.image_processor.to_dict()
    values = {name: value for name, value in images.items() if name in IMAGE_SETTINGS or name.startswith("do_")}
    texts = (sorted(tokenizer.get_vocab().items()), tokenizer.model_max_length, processor.language)
    return hashlib.sha256(json.dumps([values, *texts], sort_keys=True, default=str).encode()).hexdigest()[:32]
