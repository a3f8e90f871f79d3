"""COCO and Flickr30k with Karpathy's splits (caption_datasets.zip): the first five captions of each test image."""

from fastgoal.processing.data.forms.karpathy import TABLE

from .protocol import Protocol

PROTOCOLS = (
    Protocol(
        "coco-5k",
        "COCO 2014 5k (Karpathy test)",
        "dataset_coco.json (Karpathy) and val2014/; five captions per image",
        form="karpathy",
        files=("dataset_coco.json", "karpathy/dataset_coco.json", "annotations/dataset_coco.json"),
        images=5000,
        captions_each=5,
        split="test",
    ),
    Protocol(
        "flickr30k-1k",
        "Flickr30k 1k (Karpathy test)",
        "dataset_flickr30k.json (Karpathy) or flickr_annotations_30k.csv, and flickr30k-images/; five captions per "
        "image",
        form="karpathy",
        files=(
            TABLE,
            "dataset_flickr30k.json",
            "karpathy/dataset_flickr30k.json",
            "annotations/dataset_flickr30k.json",
        ),
        images=1000,
        captions_each=5,
        split="test",
    ),
)
