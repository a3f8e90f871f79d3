"""DCI, densely captioned images (facebookresearch/DCI). Three test sets of it are in use."""

from typing import Any

from fastgoal.processing.data.forms.dci import EXTENDED, FOLDER

from .protocol import Protocol

_ANNOTATIONS: dict[str, Any] = {"form": "dci", "files": ("annotations", f"{FOLDER}/annotations"), "captions_each": 1}
PROTOCOLS = (
    Protocol(
        "dci-7805",
        "DCI, all 7,805",
        "dci.tar.gz unpacked (annotations/) and photos/; short and long caption joined",
        images=7805,
        published_column=EXTENDED,  # as in LoTLIP's evaluation
        **_ANNOTATIONS,
    ),
    Protocol(
        "dci-7602",
        "DCI, the 7,602 with a long caption",
        "dci.tar.gz unpacked (annotations/) and photos/; the long caption, images without one left out",
        # FAST-GOAL's evaluation leaves out 203 images; the captions in GOAL's DCI_test.json are `extra_caption`.
        images=7602,
        **_ANNOTATIONS,
    ),
    Protocol(
        "dci-2k",
        "DCI, GOAL's 2k test split",
        "DCI_test.json (datasets/ in PerceptualAI-Lab/GOAL) and photos/",
        form="goal-list",
        files=("DCI_test.json",),
        images=1999,
        captions_each=1,
    ),
)
