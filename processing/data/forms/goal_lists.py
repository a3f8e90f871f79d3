"""GOAL's lists of images and captions (datasets/*_test.json and *_train_del_org.json in PerceptualAI-Lab/GOAL)."""

from pathlib import Path

from fastgoal.processing.data.sources import Source

from .files import Rows, begins_with, image_base, image_name, last_part, load_rows, objects, read_json, text_of
from .form import Form, SourceOptions

SUBFOLDERS = ("images", "photos", "densely_captioned_images/photos", "Urban1k/image", "image")


def fits(path: Path) -> bool:
    return begins_with(path, '"filename"') and not begins_with(path, '"sentids"', '"original_filename"')


def load(path: Path, options: SourceOptions) -> Source:
    return load_rows(path, read(path, image_base(path, options)), options)


def read(file: Path, base: Path) -> Rows:
    """Yield the rows: `filename`, a path on the authors' disk that ends with the image's name, and `caption`."""
    for label, row in objects(read_json(file), str(file)):
        image = image_name(base, last_part(text_of(row, "filename", label)), *SUBFOLDERS)
        yield label, {"image": image, "caption": text_of(row, "caption", label)}


FORM = Form(
    "goal-list",
    "a list of GOAL's repository, such as DCI_test.json, in the folder of its images",
    fits,
    load,
    has_image_folder=True,
)
