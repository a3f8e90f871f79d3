"""What a protocol is: a named form of data, for retrieval or for a test with an accuracy. Imports nothing heavy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastgoal.processing.data.sources import DatasetSource, Source

from ..measures.outcomes import Outcomes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Protocol:
    """A named retrieval protocol: a form of data, with the numbers of images and captions of published results.

    Attributes:
        name: Name on the command line.
        title: Name in reports.
        about: Files that a folder of the published dataset must have, and the captions that are used.
        form: Form of the published dataset, a key of `FORMS`; None if there is no published form.
        files: Files or folders that a folder of the published dataset has, any of them.
        images: Number of images of the complete protocol; None if it has no fixed number.
        captions_each: Number of captions per image that are used; None for all.
        split: Split to use, `a+b` for two; None if the dataset has no splits.
        published_column: Caption column of the published form; None for the default of the form.
        columns: Caption columns to try, in order, if the protocol is given as a table (parquet files, a saved dataset,
            a Hub id). None stands for the defaults of `load_source`.
    """

    name: str
    title: str
    about: str
    form: str | None = None
    files: tuple[str, ...] = ()
    images: int | None = None
    captions_each: int | None = None
    split: str | None = None
    published_column: str | None = None
    columns: tuple[str | None, ...] = (None,)

    def remark(self, images: int) -> str:
        """Return the note on a result of incomplete data; empty if `images` is the protocol's number of images."""
        if self.images in (None, images):
            return ""
        return (
            f"{self.title} has {self.images:,} images, but the data have {images:,}: do not compare the result with"
            " published results."
        )


@dataclass(frozen=True)
class AccuracyTest:
    """The data of an accuracy protocol, read and checked before a model is loaded.

    The evaluation embeds `images` and `texts` and calls `score`, so that a protocol needs no model.

    Attributes:
        images: Rows without captions, such as an `ImageFolder`, or for image files that a JSON file names
            `RowsSource(..., SourceOptions(with_captions=False))`. List an image with several items once.
        texts: All texts. Equal texts are embedded once.
        score: Takes the embeddings of `images` and `texts`, `(images, dim)` and `(texts, dim)` in their order,
            L2-normalized float32 on the CPU, and returns the outcomes by the name of each metric or subset. The order
            is that of the report.
        facts: What the numbers depend on, by name, for the report: `{"templates": "80, as published with CLIP"}`.
    """

    images: Source
    texts: Sequence[str]
    score: "Callable[[Tensor, Tensor], dict[str, Outcomes]]"
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class AccuracyProtocol:
    """A named protocol that measures accuracies: a file in this folder with `PROTOCOLS = (AccuracyProtocol(...),)`.

        def open_folder(data, *, image_folder=None, allow_outside_files=False) -> AccuracyTest:
            entries = ...  # read the published JSON; raise `ValueError` for anything else
            images = RowsSource(file, rows, folder, SourceOptions(with_captions=False))
            return AccuracyTest(images, [*right, *wrong], score)

        def score(image_embeds, text_embeds):  # one right and one wrong caption for each image
            right, wrong = text_embeds.chunk(2)
            return {"replace_att": Outcomes((image_embeds * right).sum(1) > (image_embeds * wrong).sum(1))}

        PROTOCOLS = (AccuracyProtocol("example", "Example", "captions.json and images/", open_folder),)

    `fastgoal evaluate`, the report, the intervals and the comparison with another model find it by its name.

    Attributes:
        name: Name on the command line.
        title: Name in reports.
        about: Files that the folder of the published dataset must have, for the help.
        open: Reads and checks the data, before a model is loaded, and raises `ValueError` with one line if they are not
            in the published form. The first parameter is what the user passed as `data`. The others are the fields of
            `EvaluationOptions` that the protocol takes, by name, such as `image_folder`, `split`, `limit` and
            `allow_outside_files`; an option that is not a parameter here is refused for this protocol. Heavy modules,
            such as torch, are imported inside.
    """

    name: str
    title: str
    about: str
    open: Callable[..., AccuracyTest]


def images_in_memory(data: Any, image_column: str | None) -> DatasetSource:
    """Return the images of a `datasets.Dataset`. Raise `ValueError` for anything else."""
    import datasets

    if not isinstance(data, datasets.Dataset):
        raise ValueError(f"`data` must be a folder, a Hub id or a `datasets.Dataset`, got a {type(data).__name__}.")
    return DatasetSource(data, "data", image_column, with_captions=False)
