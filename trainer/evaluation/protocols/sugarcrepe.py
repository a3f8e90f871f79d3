"""SugarCrepe: choose between a caption and one with a changed meaning (RAIVNLab/sugar-crepe, arXiv 2306.14610)."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgoal.processing.data.forms.files import as_object, folder_of, image_name, read_json, text_of

from ..measures.outcomes import Outcomes
from .composition import Item, ItemTable, caption_of, files_of, open_files, reading
from .protocol import AccuracyProtocol, AccuracyTest

if TYPE_CHECKING:
    from torch import Tensor

# In the order of the paper's tables.
SUBSETS = ("replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att", "add_obj", "add_att")
CHANGES = ("replace", "swap", "add")
IMAGE_FOLDERS = ("val2017", "images", "images/val2017", "coco/images/val2017")


def open_folder(
    data: Any,
    *,
    image_folder: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    allow_outside_files: bool = False,
) -> AccuracyTest:
    """Read the files of all subsets that a folder has, or one of these files; `limit` counts the items of each."""
    files = files_of(data, [f"{name}.json" for name in SUBSETS], ("", "data"))
    base = Path(image_folder) if image_folder is not None else folder_of(Path(data))
    with reading("SugarCrepe"):
        items = [item for file in files for item in islice(_read(file, base), limit)]
    return open_files(Path(data), items, base, score, published=(7511,), allow_outside_files=allow_outside_files)


def _read(file: Path, base: Path) -> Iterator[Item]:
    """Yield the items of a file: an object of entries with `filename`, `caption` and `negative_caption`."""
    for key, value in as_object(read_json(file), str(file)).items():
        label = f"{file} entry {key!r}"
        entry = as_object(value, label)
        captions = (caption_of(entry, "caption", label), caption_of(entry, "negative_caption", label))
        name = image_name(base, text_of(entry, "filename", label), *IMAGE_FOLDERS)
        yield Item(label, (name,), captions, file.stem)


def score(table: ItemTable, image_embeds: "Tensor", text_embeds: "Tensor") -> dict[str, Outcomes]:
    """Return the accuracy of each subset, the means over the subsets with one kind of change and over all of them, and
    the accuracy of all items.
    """
    correct = table.answers(image_embeds, text_embeds)["text"]
    subsets = [*dict.fromkeys(table.subsets)]
    outcomes = {subset: table.outcomes(correct, [subset]) for subset in subsets}
    for change in CHANGES:
        if of_change := [subset for subset in subsets if subset.startswith(change)]:
            outcomes[f"mean_of_{change}"] = table.outcomes(correct, of_change, by_subset=True)
    outcomes["mean_of_subsets"] = table.outcomes(correct, by_subset=True)
    return {**outcomes, "all_items": table.outcomes(correct)}


PROTOCOLS = (
    AccuracyProtocol(
        "sugarcrepe",
        "SugarCrepe",
        "add_att.json, ..., swap_obj.json (data/ in RAIVNLab/sugar-crepe) and val2017/ of COCO; the caption against "
        "its changed copy",
        open_folder,
    ),
)
