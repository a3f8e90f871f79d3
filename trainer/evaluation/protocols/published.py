"""Published results of the protocols, for comparison in reports.

All are from FAST-GOAL (arXiv 2605.26615): recall@1 in percent, `(text to image, image to text)`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedRow:
    """R@1 of a model, in percent. `model` is its name in the paper `source`."""

    model: str
    text_to_image: float
    image_to_text: float
    source: str = "arXiv 2605.26615"


_COLUMNS = ("docci", "dci-7602", "coco-5k", "flickr30k-1k")
_TABLE = {
    "CLIP ViT-B/16, positions stretched": ((58.53, 58.80), (33.36, 35.07), (33.95, 54.14), (63.20, 82.90)),
    "Long-CLIP ViT-B/16": ((71.63, 63.29), (48.41, 42.21), (40.83, 57.24), (70.80, 85.90)),
    "GOAL ViT-B/16 (cross-dataset)": ((71.22, 72.18), (49.13, 51.87), (38.86, 59.28), (68.32, 85.10)),
    "FAST-GOAL ViT-B/16 (GLIT100k)": ((74.27, 74.67), (56.62, 56.74), (42.81, 61.00), (72.50, 86.80)),
    "FAST-GOAL ViT-L/14 (GLIT100k)": ((78.55, 78.61), (59.73, 60.76), (48.53, 66.58), (76.72, 92.50)),
}

TEST_LISTS = {
    "docci": "The paper names DOCCI's test set with 5,000 images, which is DOCCI's own test split.",
    "docci-5100": "GOAL's paper does not say which list its numbers on DOCCI belong to. GOAL's public list has 5,100 "
    "images: DOCCI's 5,000 test images and 100 of qual_test.",
    "dci-7602": "The paper leaves out the 203 of DCI's 7,805 images that have no long caption.",
    "dci-2k": "GOAL's own test list of DCI, 1,999 images in its public repository.",
    "coco-5k": "The paper names 5,000 images of COCO 2014 val with five captions each. That these are Karpathy's test "
    "split is our reading.",
    "flickr30k-1k": "The paper names 1,000 test images of Flickr30k with five captions each. That these are Karpathy's "
    "test split is our reading.",
}
"""Which test list published numbers belong to, by protocol."""


def published_rows(protocol: str) -> list[PublishedRow]:
    """Return the published rows of a protocol; empty if there are none."""
    if protocol not in _COLUMNS:
        return []
    column = _COLUMNS.index(protocol)
    return [PublishedRow(model, *values[column]) for model, values in _TABLE.items()]
