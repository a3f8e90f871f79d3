"""Zero-shot classification with prompt templates, as CLIP does it (arXiv 2103.00020, section 3.1).

The embedding of a class is the normalized mean of the normalized embeddings of its name in all templates. An image is
classified correctly if its class is the most similar one (top 1), or one of five (top 5). Ties count against the model.
clip-benchmark's `zeroshot_classification.evaluate` without autocast gives the same numbers.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgoal.processing.data.forms.registry import is_source
from fastgoal.processing.data.image_folder import ImageFolder, open_images
from fastgoal.processing.data.sources import DatasetSource, Source
from fastgoal.processing.texts import shortened

from ..measures.outcomes import Outcomes
from .imagenet_templates import IMAGENET_TEMPLATES
from .protocol import AccuracyProtocol, AccuracyTest, images_in_memory

if TYPE_CHECKING:
    from torch import Tensor

TOP = 5


def open_classes(
    data: Any,
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    templates: str | os.PathLike[str] | None = None,
    classnames: str | os.PathLike[str] | None = None,
    allow_outside_files: bool = False,
) -> AccuracyTest:
    """Open images with classes: a folder with a subfolder for each class, or a dataset with a `ClassLabel` column.

    Args:
        data: The folder; or a saved dataset, parquet files, a Hub id or a `datasets.Dataset`.
        split: Split of the dataset.
        image_column: Column with the images. Default: the only image column.
        label_column: Column with the classes. Default: the only `ClassLabel` column.
        templates: File with a template in each line, `{}` for the name of the class. Default: `IMAGENET_TEMPLATES`.
        classnames: File with a name in each line, in the order of the sorted subfolders or of the labels. Default: the
            names of the subfolders or labels, with spaces for underscores.
        allow_outside_files: Whether links in the folder, or rows, may lead out of it.

    Raises:
        ValueError: The data have no classes, a class has no images, a row has no class, or a file is wrong.
    """
    is_path = isinstance(data, str | os.PathLike)
    folder = _class_folder(Path(data)) if is_path and Path(data).is_dir() else None
    images: Source
    if folder is not None:
        _refuse_for_folder(folder, split=split, image_column=image_column, label_column=label_column)
        folder.allow_outside_files = allow_outside_files
        images, (names, labels) = folder, _classes_of_folder(folder)
    else:
        images = (
            open_images(data, split=split, image_column=image_column, allow_outside_files=allow_outside_files)
            if is_path
            else images_in_memory(data, image_column)
        )
        names, labels = _classes_of_dataset(images, label_column)
    prompts = IMAGENET_TEMPLATES if templates is None else _read_templates(Path(templates))
    names = [name.replace("_", " ") for name in names] if classnames is None else _read_names(Path(classnames), names)
    facts = {
        "classes": f"{len(names):,}" + (f", named in {classnames}" if classnames else ""),
        "templates": f"{len(prompts):,}, "
        + ("published with CLIP for ImageNet" if templates is None else f"from {templates}"),
    }
    texts = [prompt.replace("{}", name) for name in names for prompt in prompts]
    return AccuracyTest(images, texts, partial(score, labels=labels, classes=len(names)), facts)


def score(image_embeds: "Tensor", text_embeds: "Tensor", labels: Sequence[int], classes: int) -> dict[str, Outcomes]:
    """Return the outcomes of every image.

    Args:
        image_embeds: `(images, dim)`.
        text_embeds: `(classes * templates, dim)`, all templates of the first class first.
        labels: `(images,)`, the class of each image.
        classes: Number of classes. Without five there is no top 5.
    """
    import torch

    from ..measures.retrieval import retrieval_ranks

    class_embeds = text_embeds.view(classes, -1, text_embeds.shape[1]).mean(1)
    ranks = retrieval_ranks(class_embeds, image_embeds, labels).text_to_image
    outcomes = {"top_1": Outcomes(ranks == 1)}
    if classes >= TOP:
        outcomes["top_5"] = Outcomes(ranks <= TOP)
    return {**outcomes, "mean_per_class": Outcomes(ranks == 1, classes=torch.tensor(labels))}


def _class_folder(folder: Path) -> ImageFolder | None:
    """Return the images of a folder that has some in subfolders; None for a dataset."""
    try:
        images = ImageFolder(folder)
    except ValueError:
        if is_source(folder):
            return None
        raise
    if any("/" in name for name in images.files):
        return images
    if is_source(folder):
        return None
    raise ValueError(
        f"{folder} has no class folders. The protocol zero-shot needs a subfolder with images for each class."
    )


def _refuse_for_folder(images: Source, **options: str | None) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"`{name}` must be left out for {images.name}, a folder of class folders, got {value!r}.")


def _classes_of_folder(images: ImageFolder) -> tuple[list[str], list[int]]:
    """Return the names of the subfolders in their order, and the class of each image."""
    folders = sorted(path.name for path in images.folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    parts = [name.split("/") for name in images.files]
    loose = next((name for name, *rest in parts if not rest), None)
    if loose is not None:
        raise ValueError(f"{images.folder / loose}: the image is not in a class folder. Move or remove it.")
    empty = sorted({*folders} - {name for name, *_ in parts})
    if empty:
        raise ValueError(f"{images.folder / empty[0]}: the class folder has no images. Add some, or remove the folder.")
    _require_two(folders, images.name)
    return folders, [folders.index(name) for name, *_ in parts]


def _classes_of_dataset(source: Source, column: str | None) -> tuple[list[str], list[int]]:
    """Return the names of the classes, and the class of each row."""
    import datasets

    features = source.dataset.features if isinstance(source, DatasetSource) else {}
    found = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if not isinstance(source, DatasetSource) or not found:
        raise ValueError(
            f"{source.name} has no classes. The protocol zero-shot needs a folder with a subfolder of images for each "
            f"class, or a dataset with a ClassLabel column; the columns are {', '.join(source.columns)}."
        )
    if column not in found and (column is not None or len(found) > 1):
        raise ValueError(
            f"`label_column` must be one of the ClassLabel columns {', '.join(found)} of {source.name}, got {column!r}."
        )
    column = column or found[0]
    names, labels = features[column].names, source.dataset[column][:]
    for row, label in enumerate(labels):
        if label is None or not 0 <= label < len(names):
            raise ValueError(
                f"{source.label(row)}: '{column}' must be a class from 0 to {len(names) - 1}, got {label}."
            )
    _require_two(names, source.name)
    return names, labels


def _require_two(names: Sequence[str], data: str) -> None:
    if len(names) < 2:
        raise ValueError(f"{data} must have at least two classes, got {', '.join(names) or 'none'}.")


def _read_templates(file: Path) -> Sequence[str]:
    templates = _read_lines(file, "templates")
    for line, template in templates.items():
        if "{}" not in template:
            raise ValueError(
                f"{file} line {line}: the template must have {{}} where the name of the class belongs, got "
                f"{shortened(repr(template), 80)}."
            )
    return [*templates.values()]


def _read_names(file: Path, classes: Sequence[str]) -> list[str]:
    names = [*_read_lines(file, "classnames").values()]
    if len(names) != len(classes):
        raise ValueError(
            f"{file} must have a name for each of the {len(classes):,} classes, {classes[0]} to {classes[-1]} in this "
            f"order, got {len(names):,} names."
        )
    return names


def _read_lines(file: Path, option: str) -> dict[int, str]:
    """Return the lines of a text file that are not blank, by their numbers."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`{option}` must be a text file in UTF-8, got {file}: {error}.") from None
    found = {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}
    if not found:
        raise ValueError(f"`{option}` must be a text file with a line for each entry, got {file}, which is empty.")
    return found


PROTOCOLS = (
    AccuracyProtocol(
        "zero-shot",
        "Zero-shot classification",
        "a folder of images for each class, or a dataset with a ClassLabel column; top-1, top-5 and mean per class",
        open_classes,
    ),
)
