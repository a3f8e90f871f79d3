"""Urban1k (BeichenZhang/Urban1k on the Hub; eval/retrieval/Urban1k.py of Long-CLIP)."""

from .protocol import Protocol

PROTOCOLS = (
    Protocol(
        "urban1k",
        "Urban1k",
        "image/N.jpg and caption/N.txt",
        form="urban1k",
        files=("caption", "Urban1k/caption"),
        images=1000,
        captions_each=1,
    ),
)
