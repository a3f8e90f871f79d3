"""ShareGPT4V 1k, the first rows of ShareGPT4V's captions (train/sharegpt4v.py of Long-CLIP)."""

from fastgoal.processing.data.forms.sharegpt4v import TEST_ROWS

from .protocol import Protocol

FILE = "share-captioner_coco_lcs_sam_1246k_1107.json"
PROTOCOLS = (
    Protocol(
        "sharegpt4v-1k",
        "ShareGPT4V 1k",
        f"{FILE}, its first 1,000 entries, and the images under their paths",
        form="sharegpt4v",
        files=(FILE, f"data/{FILE}"),
        images=TEST_ROWS,
        captions_each=1,
        split="test",
    ),
)
