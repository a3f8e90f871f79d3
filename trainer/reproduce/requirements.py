"""What a row needs: the base, the detector and the data, where each comes from, and whether it is all there."""

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from fastgoal.processing.data.forms.registry import load_source
from fastgoal.processing.data.sources import Source
from fastgoal.trainer.evaluation.protocols.registry import PROTOCOLS, open_protocol

from .plan import WEIGHTS, Plan, local_folder


@dataclass(frozen=True)
class Home:
    """Where the files of a folder under the data root come from.

    Attributes:
        contents: What the folder must contain.
        address: Where to get it.
        license: Its license.
        size: Its size.
    """

    contents: str
    address: str
    license: str
    size: str


HOMES = {
    "docci": Home(
        "docci_descriptions.jsonlines and images/; for GOAL also docci_segment_sim_bbox_del_org.json",
        "https://google.github.io/docci; https://github.com/PerceptualAI-Lab/GOAL (datasets/)",
        "CC BY 4.0; GOAL's files state none",
        "14,847 images: 9,647 train, 5,000 test, 100 qual_dev, 100 qual_test",
    ),
    "dci": Home(
        "densely_captioned_images/ of dci.tar.gz, the images of SA-1B's sa_000138.tar in its folder photos/; for GOAL "
        "also DCI_segment_sim_bbox_del_org.json and DCI_test.json",
        "https://github.com/facebookresearch/DCI; https://ai.meta.com/datasets/segment-anything-downloads; "
        "https://github.com/PerceptualAI-Lab/GOAL (datasets/)",
        "CC BY-NC 4.0; SA-1B's research license; GOAL's files state none",
        "7,805 images",
    ),
    "coco": Home(
        "val2014/ of val2014.zip and dataset_coco.json of caption_datasets.zip",
        "https://cocodataset.org; https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
        "CC BY 4.0 for the captions; Flickr's terms for the images",
        "40,504 images (6 GB), of which 5,000 are read",
    ),
    "flickr30k": Home(
        "flickr30k-images/ and dataset_flickr30k.json of caption_datasets.zip",
        "https://shannon.cs.illinois.edu/DenotationGraph; "
        "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
        "non-commercial research; Flickr's terms for the images",
        "31,783 images, of which 1,000 are read",
    ),
    "longclip": Home(
        "longclip-B.pt", "https://huggingface.co/BeichenZhang/LongCLIP-B", "Apache-2.0", "one file of 599 MB"
    ),
}
"""The folders under the data root."""
# Images of the complete training sets, by form and split.
TRAIN_IMAGES = {("docci", "train"): 9647}


@dataclass(frozen=True)
class Requirement:
    """Something that a row needs.

    Attributes:
        name: Its name: "base", "data docci".
        found: What was found; or the problem, with the way out.
        is_missing: Whether the row cannot run.
        remark: Why the result is not comparable with the published one; empty if it is.
    """

    name: str
    found: str
    is_missing: bool = False
    remark: str = ""


def check_requirements(plan: Plan) -> list[Requirement]:
    """Check the base, the detector and the data of a row. Loads no model and decodes no image."""
    models = [("base", plan.base, plan.row.base)]
    if plan.detector is not None and plan.row.detector is not None:
        models.append(("detector", plan.detector, plan.row.detector))
    found = [*(_check_model(*model) for model in models), *_check_data(plan)]
    return list(dict.fromkeys(found))  # a folder that is missing may be needed twice


def _check_model(parameter: str, name: str, published: str) -> Requirement:
    folder = local_folder(name)
    if folder is None or not any((folder / file).is_file() for file in WEIGHTS):
        where = "is not in the cache of the Hub" if folder is None else f"has no weights in {folder}"
        return Requirement(
            parameter,
            f"{name} {where}. Get it from https://huggingface.co/{published} with `hf download {published}`, or name a "
            f"folder with `{parameter}`.",
            is_missing=True,
        )
    return Requirement(parameter, name if name == published else f"{name}, given in place of {published}")


def _check_data(plan: Plan) -> Iterator[Requirement]:
    for command, words in zip(plan.row.commands, plan.commands, strict=True):
        options = dict(pairwise(words[2:]))
        option = {"train": "--train_data", "evaluate": "--data"}.get(words[1])
        position = words.index(option) + 1 if option else 2
        root, *folders = shlex.split(command)[position].split("/")
        if root not in ("{data}", "{train_data}"):
            continue  # what an earlier command makes, or the base
        name, path = folders[0] if folders else "", words[position]
        label = f"data {name}" if name else "train_data"
        try:
            if name and not os.path.exists(path):  # it is never the name of a dataset on the Hub
                raise ValueError(f"{path} does not exist.")
            if words[1] == "evaluate":
                protocol = PROTOCOLS[options["--protocol"]]
                rows = open_protocol(protocol.name, path)
                remark = protocol.remark(len(rows))
                yield Requirement(f"{label}, {protocol.title}", _count_images(rows), remark=remark)
            elif words[1] == "convert":
                yield Requirement(label, Path(path).name)
            else:
                form, split = options.get("--form"), options.get("--split")
                source, remark = load_source(path, form=form, split=split), ""
                expected = TRAIN_IMAGES.get((str(form), str(split)), len(source))
                if expected != len(source):
                    remark = f"The split {split} of {form} has {expected:,} images, but the data have {len(source):,}."
                # The images of other data may be inside large files.
                found = _count_images(source) if name else f"{path}, {len(source):,} images"
                yield Requirement(f"{label}, to train on", found, remark=remark)
        except (ValueError, OSError) as error:
            home = HOMES.get(name)
            where = f" Expected: {home.contents}. Home: {home.address} ({home.license}; {home.size})." if home else ""
            yield Requirement(label, f"{error}{where}", is_missing=True)


def _count_images(source: Source) -> str:
    """Return the number of rows in words. Raise `ValueError` if image files that they name do not exist."""
    missing = [row.image for row in source if isinstance(row.image, str) and not os.path.isfile(row.image)]
    if missing:
        raise ValueError(f"{len(missing):,} of {len(source):,} images do not exist. The first is {missing[0]}.")
    return f"{len(source):,} images"
