"""Update the index of a folder of images and search it."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from fastgoal.modeling_fastgoal.towers_fastgoal import text_positions
from fastgoal.processing.checkpoints.load import load_model
from fastgoal.processing.images import load_image
from fastgoal.processing.tokens import count_truncated

from .index import Hit, ImageIndex, Update, require_search
from .vectors import StoredVectors, is_embeddings


@dataclass(frozen=True)
class SearchResult:
    """The result of `search_images`.

    Attributes:
        index: The index, up to date.
        update: The changes that were made to it.
        hits: The most similar images, best first.
        left_out: The names of the query image in the index. An image is not its own result.
        read_tokens: The number of tokens that the model reads, if the query has more; otherwise None.
        seconds: Duration of the search, including the embedding of the query.
    """

    index: ImageIndex | StoredVectors
    update: Update
    hits: list[Hit] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    read_tokens: int | None = None
    seconds: float = 0.0


def search_images(
    images: str | Path,
    model: str,
    query: str | None = None,
    query_image: Path | None = None,
    *,
    top_k: int = 5,
    index: str | Path | None = None,
    rebuild: bool = False,
    allow_outside_files: bool = False,
    batch_size: int = 32,
    num_workers: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> SearchResult:
    """Update the index of a folder and search it by a description or an image; without a query, only update it.

    Args:
        images: Folder of images, including its subfolders, or of the vectors that `fastgoal embed` wrote.
        model: Folder or Hub id of the model.
        query: Description of the image to search for.
        query_image: Image file to search for similar images.
        top_k: Number of images to return.
        index, rebuild, allow_outside_files: See `ImageIndex`.
        batch_size, num_workers, progress: See `ImageIndex.update`.
        device: Device of the model.

    Raises:
        ValueError: The folder or the model cannot be used, or the query is empty or cannot be read.
        ImportError: LanceDB is not installed.
    """
    if query is not None and query_image is not None:
        raise ValueError("`query` and `query_image` are two queries. Give one of them.")
    if query is not None and not query.strip():
        raise ValueError("`query` must not be empty. Describe the image to search for.")
    if query_image is not None:
        load_image(query_image)
    if has_vectors := is_embeddings(images):
        if index is not None or rebuild:
            raise ValueError(f"`index` and `rebuild` must be left out for {images}, which `fastgoal embed` wrote.")
    else:
        require_search(images)
    loaded, processor = load_model(model, device)
    image_index = (
        StoredVectors(images, loaded, processor, model)
        if has_vectors
        else ImageIndex(
            images,
            loaded,
            processor,
            index=index,
            model_name=model,
            rebuild=rebuild,
            allow_outside_files=allow_outside_files,
        )
    )
    update = image_index.update(batch_size, num_workers, progress)
    if query is None and query_image is None:
        return SearchResult(image_index, update)
    start = time.perf_counter()
    hits = image_index.search(query.strip() if query is not None else Path(query_image or ""), top_k)
    seconds = time.perf_counter() - start
    left_out = [] if query_image is None else image_index.names_of(query_image)
    limit = text_positions(loaded)
    too_long = query is not None and count_truncated([query], processor.tokenizer, limit) > 0
    return SearchResult(image_index, update, hits, left_out, limit if too_long else None, seconds)
