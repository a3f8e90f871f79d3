"""The app of a Space: the demo with the models that space.json names and the images in the folder of this file."""

import json
from pathlib import Path

from fastgoal.demo.app import build_demo, launch_demo, load_models

HERE = Path(__file__).parent

if __name__ == "__main__":
    settings = json.loads((HERE / "space.json").read_text(encoding="utf-8"))
    images = HERE / "images"
    launch_demo(build_demo(load_models(settings["models"], str(images) if images.is_dir() else None)), "0.0.0.0")
