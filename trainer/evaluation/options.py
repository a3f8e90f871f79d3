"""The options of an evaluation, shared by `fastgoal.evaluate` and `fastgoal evaluate`.

Imports nothing heavy: the command builds its flags from the fields.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from fastgoal.processing.checkpoints.devices import DTYPES
from fastgoal.processing.data.forms.registry import FORMS

from .measures.cutoffs import FORMATS, KS, check_ks
from .protocols.registry import ACCURACY_PROTOCOLS, PROTOCOLS

OF_ALL = ("protocol", "batch_size", "num_workers", "device", "dtype", "resamples", "seed")
"""Options that every protocol takes."""
ACCURACY_ONLY = ("templates", "classnames", "label_column")
"""Options that no retrieval protocol takes."""
SHARED = ("ks", "on_error", "allow_outside_files", "templates", "classnames")
"""Options that hold for every protocol of an evaluation that takes them."""


def _option(default: Any, help: str, **metadata: Any) -> Any:
    """Return a field with its help text and, optionally, the `lowest` value or the `choices` allowed."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Options of an evaluation: how it reads its data and what it measures. `fastgoal evaluate` has the same ones.

        fastgoal.evaluate("fast-goal", "test/", EvaluationOptions(joint=True, resamples=0))

    `fastgoal evaluate --help` explains every option and lists the protocols.

    Raises:
        ValueError: An option has a value that is not allowed.
    """

    protocol: str = _option(
        "folder",
        "evaluation protocol, such as docci or zero-shot; `fastgoal evaluate --help` lists all",
        choices=(*PROTOCOLS, *ACCURACY_PROTOCOLS),
    )
    also: Sequence[str] | None = _option(
        None,
        "measure another protocol in the same run, such as imagenet=zero-shot:imagenet/val; repeat it for several",
        action="append",
        metavar="LABEL=PROTOCOL:PATH",
    )
    joint: bool = _option(False, "also run GOAL's joint test, mAP@10 (requires a dataset written by `fastgoal pairs`)")
    robustness: bool = _option(
        False,
        "also evaluate changed captions: a false sentence inserted, sentences shuffled or dropped, or truncated at 77 "
        "tokens",
    )
    localization: bool = _option(
        False, "also measure how often the 5, 10 and 15 patches most similar to a sentence are inside its boxes"
    )
    truncate_dim: Sequence[int] = _option(
        (), "also measure retrieval with the first N dimensions of the embeddings (default: none)", nargs="+", lowest=1
    )
    vectors: Sequence[str] = _option(
        ("float32",),
        "also measure retrieval with quantized vectors: int8, or binary, alone and rescored with the full vectors "
        "(default: none, which is float32)",
        nargs="+",
        choices=FORMATS,
    )
    check: bool = _option(False, "compute recalls and ranks again with a second implementation; stop if they differ")
    form: str | None = _option(
        None, f"form of the dataset: {', '.join(FORMS)} (default: recognized from its files)", choices=tuple(FORMS)
    )
    split: str | None = _option(
        None, "split of the dataset; required if it has several, unless its form or the protocol has a default"
    )
    image_column: str | None = _option(None, "column with the images (default: file_name, or the only image column)")
    caption_column: str | None = _option(
        None,
        "column with the captions (default: the first of caption, captions, text, txt, prompt and title that exists)",
    )
    label_column: str | None = _option(None, "zero-shot: column with the classes (default: the only ClassLabel column)")
    templates: str | None = _option(
        None,
        "zero-shot: text file with one template per line, {} for the class name (default: CLIP's 80 for ImageNet)",
        metavar="FILE",
    )
    classnames: str | None = _option(
        None,
        "zero-shot: text file with one class name per line, in the order of the sorted folders or of the labels "
        "(default: their names, with spaces for underscores)",
        metavar="FILE",
    )
    image_folder: str | None = _option(
        None,
        "folder of the image files, if the dataset is a table that names them (default: the folder of the table)",
        metavar="DIR",
    )
    boxes_column: str = _option("boxes", "column with the boxes for the localization test")
    allow_outside_files: bool = _option(False, "also read image files that rows or links name outside the data folder")
    limit: int | None = _option(None, "use only the first N rows", lowest=1)
    on_error: str = _option("stop", "if a row cannot be read: stop, or skip it and list it", choices=("stop", "skip"))
    batch_size: int = _option(32, "number of images per forward pass", lowest=1)
    num_workers: int | None = _option(
        None, "number of processes that read images (default: 4, or 0 if the model is on the CPU)", lowest=0
    )
    device: str = _option("auto", "cpu, cuda, cuda:1, mps, ...; auto uses the accelerator if there is one")
    dtype: str = _option("float32", f"data type of the model: {', '.join(DTYPES)}", choices=DTYPES)
    ks: Sequence[int] = _option(KS, f"values of k for recall@k (default: {' '.join(map(str, KS))})", nargs="+")
    resamples: int = _option(1000, "bootstrap resamples for the 95 %% intervals; 0 disables the intervals", lowest=0)
    seed: int = _option(0, "seed of the resamples and of the changed captions")

    def __post_init__(self) -> None:
        for option in fields(self):
            name, value = option.name, getattr(self, option.name)
            choices, lowest = option.metadata.get("choices"), option.metadata.get("lowest")
            is_list = "nargs" in option.metadata
            if is_list and isinstance(value, str):
                raise ValueError(f"`{name}` must be a list, got {value!r}.")
            is_number = option.type in (int, int | None) or lowest is not None
            for entry in value if is_list else [value]:
                if choices and entry not in (option.default, *choices):
                    raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
                if not is_number or value is option.default:
                    continue
                if type(entry) is not int or (lowest is not None and entry < lowest):
                    bound = "" if lowest is None else f" of at least {lowest}"
                    raise ValueError(f"`{name}` must be an integer{bound}, got {value!r}.")
        if self.resamples == 1:
            raise ValueError("`resamples` must be 0 or an integer of at least 2, got 1.")
        check_ks(self.ks)
        parse_also(self.also, self.protocol)


def parse_also(entries: Sequence[str] | None, main: str = "", argument: str = "also") -> dict[str, tuple[str, str]]:
    """Return protocol and path of each entry `LABEL=PROTOCOL:PATH` by its label.

    Args:
        entries: The entries.
        main: Name of the main protocol, which is its label.
        argument: Name of the argument that the entries were given for, for messages.

    Raises:
        ValueError: An entry has another form or an unknown protocol, or two have the same label.
    """
    if isinstance(entries, str):
        raise ValueError(f"`{argument}` must be a list, got {entries!r}.")
    found: dict[str, tuple[str, str]] = {}
    for entry in entries or ():
        label, _, rest = str(entry).partition("=")
        protocol, _, path = rest.partition(":")
        if not (label.strip() and protocol and path):
            raise ValueError(
                f"`{argument}` must be LABEL=PROTOCOL:PATH, such as imagenet=zero-shot:imagenet/val, got {entry!r}."
            )
        if protocol not in (known := (*PROTOCOLS, *ACCURACY_PROTOCOLS)):
            raise ValueError(
                f"`{argument}` must name one of the protocols {', '.join(known)}, got {protocol!r} in {entry!r}."
            )
        if label in (main, *found):
            raise ValueError(f"`{argument}` must have a label of its own for each protocol, got {label!r} twice.")
        found[label] = (protocol, path)
    return found
