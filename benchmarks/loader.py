"""The cost of batches before the model sees them: rows per second of a loader process, and padding.

    python -m benchmarks.loader --captions CAPTIONS.jsonl --tokenizer openai/clip-vit-base-patch32 --images PHOTOGRAPHS

The collator is compared with the same batch made by calls of the processor, row by row, and without crops with
open_clip's loader if that is installed; rounds alternate. Images are the photographs of `--images` at 640x480 and
1024x768, or JPEGs of noise. Captions are those of `--captions`, a JSON lines file with `caption`, or made-up texts of
similar lengths.
"""

import argparse
import io
import json
import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.random_clip import TOKENS, build_processor
from benchmarks.timing import Rounds, timed
from fastgoal import FastGoalCollator, FastGoalProcessor, split_sentences
from fastgoal.processing.geometry import crop_box
from fastgoal.processing.images import load_image
from fastgoal.processing.pixels import jpeg_decoder
from fastgoal.trainer.batches.rows import TrainingRow
from fastgoal.trainer.batches.samplers import CaptionLengthSampler
from fastgoal.trainer.batches.token_table import TokenTable

ROWS, ROUNDS = 64, 5
SIZES = ((640, 480), (1024, 768))

Caption = tuple[str, list[tuple[int, int]]]
"""A caption with the spans of its sentences."""


def add_caption_options(parser: argparse.ArgumentParser) -> None:
    """Add `--captions` and `--tokenizer`, for `read_captions` and `build_processor`."""
    parser.add_argument("--captions", metavar="FILE", help="JSON lines with `caption`; needs --tokenizer")
    parser.add_argument("--tokenizer", metavar="NAME", help="CLIP's tokenizer: a folder or a Hub id")
    parser.add_argument("--batch-size", type=int, default=16)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, with captions and tokenizer or without both."""
    args = parser.parse_args()
    if bool(args.captions) != bool(args.tokenizer):
        parser.error("--captions and --tokenizer need each other; without both, captions are made up.")
    return args


def read_captions(path: str | None, rng: random.Random) -> list[Caption]:
    """Read captions with the spans of their sentences; without a file, make up texts of letters as long as DOCCI's."""
    if path:
        with open(path, encoding="utf-8") as lines:
            texts = [json.loads(line)["caption"] for line in lines if line.strip()]
        return [(text, [(s.start, s.end) for s in split_sentences(text)]) for text in texts]
    captions = []
    for _ in range(1000):
        text, spans = "", []
        for _ in range(max(2, round(rng.gauss(7, 2)))):
            sentence = " ".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=max(4, round(rng.gauss(18, 6))))) + " ."
            spans.append((len(text), len(text) + len(sentence)))
            text += sentence + " "
        captions.append((text.rstrip(), spans))
    return captions


def make_row(
    caption: str,
    spans: list[tuple[int, int]],
    rng: random.Random,
    size: tuple[int, int] = (1024, 768),
    photograph: Path | None = None,
) -> dict[str, Any]:
    """Make a row of a pairs dataset: a JPEG, with a pair for every sentence in the part that CLIP's crop keeps."""
    noise = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    image = load_image(photograph) if photograph else Image.fromarray(noise)
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    regions = []
    for _ in spans:
        width, height = (rng.uniform(0.2, 0.75) * size[1] for _ in range(2))
        x = rng.uniform((size[0] - size[1]) / 2, (size[0] + size[1]) / 2 - width)
        y = rng.uniform(0, size[1] - height)
        regions.append({"box": [x, y, x + width, y + height]})
    # The best pair has one of the first sentences: the model may not read as far as a late one.
    best = rng.randrange(min(3, len(spans)))
    return {
        "image": {"bytes": buffer.getvalue(), "path": None},
        "caption": caption,
        "regions": regions,
        "sentences": [{"start": start, "end": end} for start, end in spans],
        "pairs": [{"sentence": i, "region": i, "score": 1.0 if i == best else 0.5} for i in range(len(spans))],
    }


def make_rows(captions: list[Caption], rng: random.Random) -> list[dict[str, Any]]:
    """Make rows of some of the captions."""
    return [make_row(*caption, rng) for caption in rng.sample(captions, min(len(captions), ROWS))]


def plain_batch(processor: FastGoalProcessor, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Make the collator's batch of best pairs by calls of the processor, row by row."""
    images, crops, texts, regions, sentences = [], [], [], [], []
    for row in rows:
        images.append(load_image(row["image"]))
        pair = max(row["pairs"], key=lambda pair: pair["score"])
        box, spans = row["regions"][pair["region"]]["box"], [(s["start"], s["end"]) for s in row["sentences"]]
        crops.append(crop_box(images[-1], box))
        texts.append(row["caption"][slice(*spans[pair["sentence"]])])
        regions.append(processor.region_mask(box, images[-1].size))
        sentences.append(processor.sentence_masks(row["caption"], spans)[pair["sentence"]])
    whole, local = processor(images, [row["caption"] for row in rows]), processor(crops, texts)
    padded = torch.nn.utils.rnn.pad_sequence(sentences, batch_first=True)
    local_inputs = {f"local_{name}": value for name, value in local.items()}
    return {**whole, **local_inputs, "region_mask": torch.stack(regions), "sentence_mask": padded}


def open_clip_batch(size: int = 224) -> Callable[[list[dict[str, Any]]], Any]:
    """Return a function that makes batches of images and captions as open_clip's workers do."""
    import open_clip

    transform = open_clip.image_transform(size, is_train=False)
    tokenizer = open_clip.SimpleTokenizer(context_length=TOKENS)

    def make(rows: list[dict[str, Any]]) -> Any:
        images = [transform(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows]
        return torch.stack(images), tokenizer([row["caption"] for row in rows])

    return make


def report_speed(processor: FastGoalProcessor, rows: list[dict[str, Any]], batch_size: int) -> dict[str, float]:
    """Measure the milliseconds a row in one loader process: the median over interleaved rounds."""
    table = TokenTable([row["caption"] for row in rows], processor.tokenizer)
    tokens = {id(row): table[number] for number, row in enumerate(rows)}
    collator, without_pairs = FastGoalCollator(processor), FastGoalCollator(processor, local_pairs=False)
    ways: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
        "collator, stored tokens": lambda batch: collator(
            [TrainingRow.of(row, epoch=0, tokens=tokens[id(row)]) for row in batch]
        ),
        "collator": lambda batch: collator([TrainingRow.of(row, epoch=0) for row in batch]),
        "calls of the processor": lambda batch: plain_batch(processor, batch),
        "collator, no crops": lambda batch: without_pairs([TrainingRow.of(row, epoch=0) for row in batch]),
    }
    if find_spec("open_clip"):
        ways["open_clip, no crops"] = open_clip_batch()
    threads, rounds = torch.get_num_threads(), Rounds()
    torch.set_num_threads(1)  # as in a worker
    batches = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    for number in range(ROUNDS + 1):
        for name, way in ways.items():
            seconds = timed(lambda way=way: [way(batch) for batch in batches])  # type: ignore[misc]
            if number:  # the first round warms up
                rounds.add(name, seconds)
    torch.set_num_threads(threads)
    return {name: float(rounds.median(name)[0]) / len(rows) * 1000 for name in ways}


def padded_share(batches: list[torch.Tensor]) -> float:
    """Return the share of padding in the tokens of some batches, from the lengths of each batch's captions."""
    return 1 - float(torch.cat(batches).sum()) / sum(len(lengths) * int(lengths.max()) for lengths in batches)


def report_padding(processor: FastGoalProcessor, captions: list[str], batch_size: int) -> None:
    """Print the share of padding in captions for each order of rows."""
    lengths = torch.tensor([len(row) for row in processor.tokenizer(captions, truncation=True)["input_ids"]])
    shuffled = lengths[torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0))]
    grouped = lengths[list(CaptionLengthSampler(lengths.tolist(), batch_size))]
    print(f"Tokens in a caption: mean {lengths.float().mean():.0f}, longest {lengths.max()}; share of padding:\n")
    print("| batches | padded tokens |\n|---|---|")
    print(f"| padded to {TOKENS} tokens | {1 - lengths.float().mean() / TOKENS:.1%} |")
    print(f"| padded to the longest caption | {padded_share(list(shuffled.split(batch_size))):.1%} |")
    print(f"| the same, `group_by_length` | {padded_share(list(grouped.split(batch_size))):.1%} |")


def count_shapes(lengths: torch.Tensor, batch_size: int, multiple: int) -> int:
    """Return how many shapes `torch.compile` sees in an epoch.

    Args:
        lengths: Tokens of each row's caption and sentence, `(rows, 2)`, in the order of the epoch.
        batch_size: Rows of a batch; an incomplete one is dropped.
        multiple: Number that padded lengths are multiples of.
    """
    batches = [batch for batch in lengths.split(batch_size) if len(batch) == batch_size]
    return len({tuple((-(-batch.amax(dim=0) // multiple)).tolist()) for batch in batches})


def report_shapes(processor: FastGoalProcessor, captions: list[Caption], rng: random.Random) -> None:
    """Print the number of shapes of an epoch, with a random sentence of each caption."""
    sentences = [text[slice(*rng.choice(spans))] for text, spans in captions]
    ids = [processor.tokenizer(texts, truncation=True)["input_ids"] for texts in ([c for c, _ in captions], sentences)]
    lengths = torch.tensor([[len(row) for row in column] for column in ids]).T
    lengths = lengths[torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0))]
    print(f"\nShapes of an epoch of {len(lengths):,} rows (length of captions and of sentences):\n")
    print("| batch | batches | padded to the longest | to multiples of 8 |\n|---|---|---|---|")
    for size in (16, 64, 256):
        shapes = [str(count_shapes(lengths, size, multiple)) for multiple in (1, 8)]
        print(f"| {size} | {len(lengths) // size} | {' | '.join(shapes)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_caption_options(parser)
    parser.add_argument("--images", metavar="DIR", help="folder with photographs")
    args = parse(parser)
    rng = random.Random(0)
    captions = read_captions(args.captions, rng)
    processor = build_processor(args.tokenizer, "b32")
    photographs = sorted(Path(args.images).rglob("*.jpg"))[:ROWS] if args.images else [None]
    print(f"JPEGs are decoded by {'PIL' if jpeg_decoder() is None else 'torchcodec'}.\n")
    print("| size | way | ms a row | rows/s |\n|---|---|---|---|")
    for size in SIZES:
        chosen = rng.sample(captions, min(len(captions), ROWS))
        rows = [make_row(*caption, rng, size, photographs[i % len(photographs)]) for i, caption in enumerate(chosen)]
        for name, cost in report_speed(processor, rows, args.batch_size).items():
            print(f"| {size[0]}x{size[1]} | {name} | {cost:.2f} | {1000 / cost:.0f} |")
    print()
    report_padding(processor, [caption for caption, _ in captions], args.batch_size)
    report_shapes(processor, captions, rng)


if __name__ == "__main__":
    main()
