"""ARO: attributes, relations and word order (mertyg/vision-language-models-are-bows, arXiv 2210.01936)."""

import os
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgoal.processing.data.forms.files import folder_of, image_name, objects, read_json, text_of
from fastgoal.processing.data.forms.registry import is_source

from ..measures.outcomes import Outcomes
from .composition import Item, ItemTable, box_of, caption_of, files_of, open_files, open_table, reading, texts_of
from .protocol import AccuracyProtocol, AccuracyTest

if TYPE_CHECKING:
    from torch import Tensor

LEAST_CASES = 25
"""The published mean over pairs of attributes leaves out those with fewer cases."""
_SYMMETRIC = """
    adjusting, around, attached to, beside, between, bigger than, biting, boarding, brushing, by, chewing, cleaning,
    climbing, close to, coming from, coming out of, contain, crossing, dragging, draped over, drinking, drinking from,
    driving, driving down, driving on, eating from, eating in, enclosing, exiting, facing, filled with, floating in,
    floating on, flying, flying above, flying in, flying over, flying through, full of, going down, going into, going
    through, grazing in, growing in, growing on, guiding, hanging from, hanging in, hanging off, hanging over, higher
    than, holding onto, hugging, in between, jumping off, jumping on, jumping over, kept in, larger than, leading,
    leaning over, leaving, licking, longer than, looking in, looking into, looking out, looking over, looking through,
    lying next to, lying on top of, making, mixed with, mounted on, moving, near, next to, of, on the back of, on the
    edge of, on the front of, on the other side of, on the side of, opening, painted on, parked at, parked beside,
    parked by, parked in, parked in front of, parked near, parked next to, perched on, petting, piled on, playing,
    playing in, playing on, playing with, pouring, reaching for, reading, reflected on, riding on, running in, running
    on, running through, seen through, sitting behind, sitting beside, sitting by, sitting in front of, sitting near,
    sitting next to, sitting under, skiing down, skiing on, sleeping in, sleeping on, smiling at, sniffing, splashing,
    sprinkled on, stacked on, standing against, standing around, standing behind, standing beside, standing in front of,
    standing near, standing next to, staring at, stuck in, surrounding, swimming in, swinging, talking to, topped with,
    touching, traveling down, traveling on, tying, typing on, underneath, wading in, waiting for, walking across,
    walking by, walking down, walking next to, walking through, with, working in, working on, worn on, wrapped around,
    wrapped in
"""
SYMMETRIC = frozenset(" ".join(_SYMMETRIC.split()).split(", "))
"""The relations that the published mean over relations leaves out (the notebook of the repository): with most of them
the exchanged caption can be true, too."""
ORDER_FILES = ("coco_order.json", "flickr30k_order.json")
ORDER_FOLDERS = ("images", "coco", "flickr30k")
ORDER_COLUMNS = ("correct_caption", "hard_text_1", "hard_text_2", "hard_text_3", "hard_text_4")


def open_attribution(
    data: Any,
    *,
    image_folder: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    allow_outside_files: bool = False,
) -> AccuracyTest:
    """Read `visual_genome_attribution.json`. A subset is a pair of `attributes`, in the order of the case."""

    def pair_of(case: dict[str, Any], label: str) -> str:
        return " and ".join(texts_of(case, "attributes", 2, label))

    items, base = _cases(data, "visual_genome_attribution.json", image_folder, pair_of, limit)
    cases = Counter(item.subset for item in items)
    return open_files(
        Path(data),
        items,
        base,
        partial(_score, "mean_of_attribute_pairs", {pair for pair, count in cases.items() if count >= LEAST_CASES}),
        published=(28748,),
        facts={"mean": f"over the pairs of attributes with at least {LEAST_CASES} cases, as published"},
        allow_outside_files=allow_outside_files,
    )


def open_relation(
    data: Any,
    *,
    image_folder: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    allow_outside_files: bool = False,
) -> AccuracyTest:
    """Read `visual_genome_relation.json`. A subset is a `relation_name`."""

    def relation_of(case: dict[str, Any], label: str) -> str:
        return text_of(case, "relation_name", label)

    items, base = _cases(data, "visual_genome_relation.json", image_folder, relation_of, limit)
    return open_files(
        Path(data),
        items,
        base,
        partial(_score, "mean_of_relations", {item.subset for item in items} - SYMMETRIC),
        published=(23937,),
        facts={"mean": f"over the relations without {len(SYMMETRIC)} symmetric ones, as published"},
        allow_outside_files=allow_outside_files,
    )


def open_order(
    data: Any,
    *,
    split: str | None = None,
    image_folder: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    allow_outside_files: bool = False,
) -> AccuracyTest:
    """Read captions and their four changed copies: files of ARO's test cases, or a table of the Hub.

    ARO's code shuffles the words anew in each run. Its `test_cases`, written as JSON, are a list of cases with `image`
    and `caption_options`, the right one first. `limit` counts the items of each file.
    """
    published = (25010, 5000, 30010)  # COCO, Flickr30k, both
    is_path = isinstance(data, str | os.PathLike)
    if not is_path or not Path(data).exists() or (Path(data).is_dir() and is_source(Path(data))):
        return open_table(
            data,
            ["images"],
            ORDER_COLUMNS,
            None,
            _score_order,
            published=published,
            split=split,
            image_folder=image_folder,
            limit=limit,
            allow_outside_files=allow_outside_files,
        )
    if split is not None:
        raise ValueError(f"`split` must be left out for {data}, which has no splits, got {split!r}.")
    base = Path(image_folder) if image_folder is not None else folder_of(Path(data))
    items = []
    for file in files_of(data, ORDER_FILES):
        with reading("ARO's test cases for word order"):
            for label, case in islice(objects(read_json(file), str(file)), limit):
                captions = texts_of(case, "caption_options", len(ORDER_COLUMNS), label)
                name = image_name(base, text_of(case, "image", label), *ORDER_FOLDERS)
                items.append(Item(label, (name,), captions, file.stem))
    return open_files(
        Path(data), items, base, _score_order, published=published, allow_outside_files=allow_outside_files
    )


def _cases(
    data: Any,
    file_name: str,
    image_folder: str | os.PathLike[str] | None,
    subset_of: Callable[[dict[str, Any], str], str],
    limit: int | None,
) -> tuple[list[Item], Path]:
    """Read the cases of Visual Genome: `image_path`, `bbox_x`, ..., `true_caption` and `false_caption`.

    Returns:
        The items, and the folder of the images.
    """
    (file,) = files_of(data, [file_name])
    base = Path(image_folder) if image_folder is not None else folder_of(Path(data))
    items = []
    with reading(f"ARO, {file_name}"):
        for label, case in islice(objects(read_json(file), str(file)), limit):
            captions = (caption_of(case, "true_caption", label), caption_of(case, "false_caption", label))
            name = image_name(base, text_of(case, "image_path", label), "images")
            items.append(Item(label, (name,), captions, subset_of(case, label), box_of(case, label)))
    return items, base


def _score(
    mean: str, subsets: Collection[str], table: ItemTable, image_embeds: "Tensor", text_embeds: "Tensor"
) -> dict[str, Outcomes]:
    """Return the mean over the accuracies of some subsets, if they have items, and the accuracy of all items."""
    correct = table.answers(image_embeds, text_embeds)["text"]
    means = {mean: table.outcomes(correct, subsets, by_subset=True)} if subsets else {}
    return {**means, "all_items": table.outcomes(correct)}


def _score_order(table: ItemTable, image_embeds: "Tensor", text_embeds: "Tensor") -> dict[str, Outcomes]:
    """Return the accuracy of each file, if there are two, and of all items."""
    correct = table.answers(image_embeds, text_embeds)["text"]
    subsets = [*dict.fromkeys(table.subsets)]
    by_file = {subset: table.outcomes(correct, [subset]) for subset in subsets} if len(subsets) > 1 else {}
    return {**by_file, "all_items": table.outcomes(correct)}


PROTOCOLS = (
    AccuracyProtocol(
        "aro-attribution",
        "ARO, Visual Genome Attribution",
        "visual_genome_attribution.json and images/ (ARO); the attributes of two things exchanged",
        open_attribution,
    ),
    AccuracyProtocol(
        "aro-relation",
        "ARO, Visual Genome Relation",
        "visual_genome_relation.json and images/ (ARO); the two things of a relation exchanged",
        open_relation,
    ),
    AccuracyProtocol(
        "aro-order",
        "ARO, word order",
        "the caption and four copies with shuffled words: parquet files or Hub id (mteb/ARO-COCO-order, "
        "mteb/ARO-Flickr-Order), or coco_order.json and flickr30k_order.json with ARO's test cases, and the images",
        open_order,
    ),
)
