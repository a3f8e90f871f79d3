"""Embed images, crops, patches and texts. Everything in this project that embeds calls these functions.

Embeddings are L2-normalized, float32 and on the CPU. `model` is any supported model on its device and in its dtype.
Each function runs it in eval mode without gradients, and leaves it in the mode it was in.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from fastgoal.modeling_fastgoal.towers_fastgoal import patch_embeds, text_positions

from .checks import check_positive
from .pixels import PixelReader
from .texts import check_texts
from .tokens import pad_ids, padding_of

T = TypeVar("T")

# A text of 32 tokens takes about as much work as a crop of 224 pixels in patches of 32.
TOKENS_PER_CROP = 32


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Put a model into eval mode, and restore its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def embed_crops(
    model: Any, reader: PixelReader, items: Iterable[tuple[T, torch.Tensor]], batch_size: int
) -> Iterator[tuple[T, torch.Tensor]]:
    """Embed the images or crops of one item after the other, with batches that span items.

    The next batch is collected while the device works on the last one.

    Args:
        reader: The reader that made the pixels.
        items: Anything with its pixels from `reader.read`, `(crops, 3, height, width)`; taken only when a batch needs
            them.
        batch_size: Crops in a forward pass.

    Yields:
        Each item with the embeddings of its crops, `(crops, dim)`.
    """
    waiting: deque[tuple[T, int]] = deque()

    def single_crops() -> Iterator[torch.Tensor]:
        for item, pixels in items:
            waiting.append((item, len(pixels)))
            yield from pixels

    stream = single_crops()
    done, running = torch.empty(0), torch.empty(0)
    batch: list[torch.Tensor] | None = None
    with eval_mode(model):
        while batch != []:
            batch, last = list(islice(stream, batch_size)), running
            if batch:
                pixels = _to_model(torch.stack(batch), reader, model)
                running = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1)
            done = torch.cat([done, last.cpu()])
            while waiting and waiting[0][1] <= len(done):
                item, count = waiting.popleft()
                yield item, done[:count]
                done = done[count:]


def embed_images(
    model: Any,
    processor: Any,
    images: Iterable[Any],
    batch_size: int = 32,
    num_workers: int = 0,
    progress: bool = False,
) -> torch.Tensor:
    """Embed images with the image tower.

        embeds = embed_images(model, processor, ["dog.jpg", "cat.jpg"])  # (2, dim)

    Args:
        processor: The model's processor; only its `image_processor` is used.
        images: What `load_image` reads: PIL images, file names, bytes. A sequence is read one batch at a time.
        batch_size: Images in a forward pass.
        num_workers: Processes that read and resize images; 0 for this process.
        progress: Show a progress bar.

    Returns:
        `(images, dim)` in the order of `images`.

    Raises:
        ValueError, OSError: An image cannot be read, or there are none.
    """
    check_positive(batch_size=batch_size)
    rows: Any = images if isinstance(images, Sequence) else list(images)
    if len(rows) == 0:
        raise ValueError("`images` must hold at least one image, got none.")
    reader = PixelReader(processor.image_processor)
    batches: Any = DataLoader(
        rows,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=partial(_read_images, reader),
        generator=torch.Generator(),  # or the loader would draw from the global one
    )
    with tqdm(total=len(rows), desc="images", unit="image", disable=not progress) as bar:
        parts = []
        for count, embeds in embed_crops(model, reader, batches, batch_size):
            parts.append(embeds)
            bar.update(count)
    return torch.cat(parts)


def _read_images(reader: PixelReader, images: Sequence[Any]) -> tuple[int, torch.Tensor]:
    # One after the other: a batch of decoded photographs would take much memory.
    return len(images), torch.cat([reader.read([(reader.open(image), None)]) for image in images])


@torch.no_grad()
def embed_patches(model: Any, processor: Any, images: Sequence[Any]) -> torch.Tensor:
    """Embed every patch of some images in the joint space, `(images, patches, dim)`, in one forward pass.

    A patch's embedding is its last-layer token, after the tower's final norm and projection.
    """
    return F.normalize(patch_embeds(model, vision_outputs(model, processor, images)).float(), dim=-1).cpu()


@torch.no_grad()
def vision_outputs(model: Any, processor: Any, images: Sequence[Any]) -> Any:
    """Return what the model's vision tower outputs for some images, in one forward pass."""
    reader = PixelReader(processor.image_processor)
    with eval_mode(model):
        return model.vision_model(pixel_values=_to_model(_read_images(reader, images)[1], reader, model))


@torch.no_grad()
def embed_texts(
    model: Any,
    processor: Any,
    texts: Sequence[str],
    batch_size: int = 128,
    *,
    max_length: int | None = None,
    tokens_per_text: int | None = None,
    progress: bool = False,
) -> torch.Tensor:
    """Embed texts with the text tower, each distinct text once, so that equal texts have equal embeddings.

    Texts of similar lengths share a forward pass, so that there is little padding; the longest come first, so that
    running out of memory shows at once.

    Args:
        processor: The model's processor; only its `tokenizer` is used.
        texts: At least one text.
        batch_size: Texts of the longest length in a forward pass, and more of shorter ones: as many as have the same
            number of tokens.
        max_length: Truncate texts to this number of tokens, where the model reads more.
        tokens_per_text: Count `batch_size` in texts of this number of tokens instead of the longest length.
        progress: Show a progress bar.

    Returns:
        `(texts, dim)` in the order of `texts`. Which texts share a forward pass, and so the last bits of the result,
        depends on the set of texts alone.

    Raises:
        ValueError: There are no texts, or one is not valid Unicode.
    """
    check_positive(batch_size=batch_size)
    if isinstance(texts, str) or len(texts) == 0:
        raise ValueError(f"`texts` must be a list of at least one text, got {texts!r}.")
    tokenizer, length = processor.tokenizer, text_positions(model)
    length = length if max_length is None else min(length, max_length)
    unique = list(dict.fromkeys(texts))
    check_texts(unique)
    encoded = tokenizer(unique, truncation=True, max_length=length)["input_ids"]
    ids = dict(zip(unique, encoded, strict=True))
    padded = 0 if padding_of(tokenizer) is True else tokenizer.model_max_length
    lengths = {text: max(len(tokens), padded) for text, tokens in ids.items()}
    index: dict[str, int] = {}
    parts = []
    with eval_mode(model), tqdm(total=len(unique), desc="texts", unit="text", disable=not progress) as bar:
        for batch in batches_by_tokens(lengths, batch_size * (tokens_per_text or length)):
            inputs = pad_ids(tokenizer, [ids[text] for text in batch])
            embeds = model.get_text_features(**{name: value.to(model.device) for name, value in inputs.items()})
            parts.append(F.normalize(embeds.pooler_output.float(), dim=-1))
            index |= {text: len(index) + row for row, text in enumerate(batch)}
            bar.update(len(batch))
    return torch.cat(parts).cpu()[[index[text] for text in texts]]


def batches_by_tokens(lengths: Mapping[str, int], max_tokens: int) -> Iterator[list[str]]:
    """Group texts of these lengths, the longest first, into batches of at most `max_tokens` tokens with padding.

    A longer text gets a batch of its own. A batch also ends where it holds an eighth of `max_tokens` and the next text
    would bring padding above a tenth of its tokens.
    """
    batch: list[str] = []
    tokens = 0
    for text in sorted(lengths, key=lambda text: (-lengths[text], text)):
        padded = (len(batch) + 1) * lengths[batch[0] if batch else text]
        wasteful = 0.9 * padded > tokens + lengths[text] and 8 * tokens >= max_tokens
        if batch and (padded > max_tokens or wasteful):
            yield batch
            batch, tokens = [], 0
        batch.append(text)
        tokens += lengths[text]
    if batch:
        yield batch


def _to_model(pixels: torch.Tensor, reader: PixelReader, model: Any) -> torch.Tensor:
    """Bring pixels onto the model's device, normalized there: bytes take a quarter of the transfer that floats do."""
    if model.device.type == "cuda":
        pixels = pixels.pin_memory()
    return reader.normalize_pixels(pixels.to(model.device, non_blocking=True)).to(model.dtype)
