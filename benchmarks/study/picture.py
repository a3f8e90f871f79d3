"""The picture of the README: where a model of the study sees each sentence of a caption.

    python -m benchmarks.study.picture --output docs/images/explain.webp

The model is the study's FAST-GOAL of seed 0, taken from `--work` or trained in a minute; the scene is none of those
that it was trained on. The boxes are those of the drawn world's detector.
"""

import argparse
from pathlib import Path

from PIL import Image

from fastgoal.pages.explain import explain, explanation_figure
from fastgoal.pages.render import save_image
from fastgoal.processing.detectors.spec import DetectorSpec
from fastgoal.processing.regions import Region

from .__main__ import HERE
from .arms import FAST_GOAL, Sizes
from .runs import Seed
from .scenes import draw_crowds


class KnownBoxes:
    """A detector that knows what it finds, whatever it is shown."""

    spec = DetectorSpec(kind="drawn", name="boxes of the drawn world")

    def __init__(self, regions: list[Region]) -> None:
        self.regions = regions

    def prepare(self, image: Image.Image, caption: str | None) -> Image.Image:
        return image

    def detect(self, prepared: list[Image.Image]) -> list[list[Region]]:
        return [self.regions for _ in prepared]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("explain.webp"))
    parser.add_argument("--work", type=Path, default=Path("study-work"), help="folder for finished trainings")
    parser.add_argument("--scene", type=int, default=7, help="number of the scene")
    args = parser.parse_args()
    seed = Seed(0, Sizes(), "test", None, HERE / "base_clip", args.work)
    model, _ = seed.model(FAST_GOAL)
    scene = draw_crowds(args.scene + 1, "picture", "train", twins=0.0)[args.scene]
    boxes = [Region(tuple(map(float, box)), 0.9, "thing", "drawn") for box in scene.detected]
    options = {"detector": KnownBoxes(boxes), "model_name": "FAST-GOAL, trained on drawn scenes"}
    explanation = explain(model, seed.processor, scene.image, scene.caption, **options)
    save_image(explanation_figure([explanation], width=720), args.output)
    print(scene.caption)
    print(f"Picture: {args.output}")


if __name__ == "__main__":
    main()
