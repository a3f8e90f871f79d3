"""What batches of captions cost before the model sees them: samples per second of a loader process, and padding.

    python -m benchmarks.loader --captions CAPTIONS.jsonl --tokenizer openai/clip-vit-base-patch32

Pictures are JPEGs of noise; captions are real where `--captions` names a JSON lines file with a `caption` in each line,
else of like lengths.
"""

import argparse
import io
import json
import random
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.random_clip import TOKENS, build_processor
from benchmarks.timing import timed
from fastgoal import FastGoalCollator, FastGoalProcessor, split_sentences
from fastgoal.trainer.batches.samplers import CaptionLengthSampler

ROWS = 64

Caption = tuple[str, list[tuple[int, int]]]
"""A text with the spans of its sentences."""


def add_caption_options(parser: argparse.ArgumentParser) -> None:
    """`--captions` and `--tokenizer`, for `read_captions` and `build_processor`."""
    parser.add_argument("--captions", metavar="FILE", help="JSON lines with `caption`; needs --tokenizer")
    parser.add_argument("--tokenizer", metavar="NAME", help="CLIP's tokenizer: a folder or a Hub id")
    parser.add_argument("--batch-size", type=int, default=16)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, with captions and tokenizer or without both."""
    args = parser.parse_args()
    if bool(args.captions) != bool(args.tokenizer):
        parser.error("--captions and --tokenizer go together; without both, texts of letters are made up.")
    return args


def read_captions(path: str | None, rng: random.Random) -> list[Caption]:
    """Captions with the spans of their sentences; without a file, texts of letters as long as DOCCI's captions are."""
    if path:
        with open(path, encoding="utf-8") as lines:
            captions = [json.loads(line)["caption"] for line in lines if line.strip()]
        return [(caption, [(s.start, s.end) for s in split_sentences(caption)]) for caption in captions]
    made = []
    for _ in range(1000):
        text, spans = "", []
        for _ in range(max(2, round(rng.gauss(7, 2)))):
            sentence = " ".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=max(4, round(rng.gauss(18, 6))))) + " ."
            spans.append((len(text), len(text) + len(sentence)))
            text += sentence + " "
        made.append((text.rstrip(), spans))
    return made


def make_row(caption: str, spans: list[tuple[int, int]], rng: random.Random) -> dict[str, Any]:
    """A row of a pairs data set: a 1024x768 JPEG of noise with one pair in the part that CLIP's crop keeps."""
    noise = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((1024, 768), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    width, height = rng.randint(150, 600), rng.randint(150, 600)
    x, y = rng.randint(128, 896 - width), rng.randint(0, 768 - height)
    return {
        "image": {"bytes": buffer.getvalue(), "path": None},
        "caption": caption,
        "regions": [{"box": [x, y, x + width, y + height]}],
        "sentences": [{"start": start, "end": end} for start, end in spans],
        # One of the first sentences: a late one may lie beyond the last token that the model reads.
        "pairs": [{"sentence": rng.randrange(min(3, len(spans))), "region": 0, "score": 1.0}],
    }


def make_rows(captions: list[Caption], rng: random.Random) -> list[dict[str, Any]]:
    """Rows of some of the captions."""
    return [make_row(*caption, rng) for caption in rng.sample(captions, min(len(captions), ROWS))]


def loader_rate(processor: FastGoalProcessor, rows: list[dict[str, Any]], batch_size: int) -> float:
    """Samples per second that one loader process makes: decode, cut out, resize, tokenise."""
    collate, threads = FastGoalCollator(processor), torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    collate(rows[:batch_size])
    batches = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    seconds = timed(lambda: [collate(batch) for batch in batches])[0]
    torch.set_num_threads(threads)
    return len(rows) / float(seconds)


def padded_share(batches: list[torch.Tensor]) -> float:
    """Share of the tokens of some batches that is padding, from the lengths of each batch's captions."""
    return 1 - float(torch.cat(batches).sum()) / sum(len(lengths) * int(lengths.max()) for lengths in batches)


def report_padding(processor: FastGoalProcessor, captions: list[str], batch_size: int) -> None:
    """Share of padding in the captions with each way to make batches."""
    lengths = torch.tensor([len(row) for row in processor.tokenizer(captions, truncation=True)["input_ids"]])
    shuffled = lengths[torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0))]
    grouped = lengths[list(CaptionLengthSampler([len(caption) for caption in captions], batch_size))]
    print(f"Tokens of a caption: mean {lengths.float().mean():.0f}, longest {lengths.max()}; share of padding:\n")
    print("| batches | padded tokens |\n|---|---|")
    print(f"| all to {TOKENS} tokens | {1 - lengths.float().mean() / TOKENS:.1%} |")
    print(f"| each to its own longest | {padded_share(list(shuffled.split(batch_size))):.1%} |")
    print(f"| the same, `--group_by_caption_length` | {padded_share(list(grouped.split(batch_size))):.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_caption_options(parser)
    args = parse(parser)
    rng = random.Random(0)
    captions = read_captions(args.captions, rng)
    processor = build_processor(args.tokenizer, 32)
    rate = loader_rate(processor, make_rows(captions, rng), args.batch_size)
    print(f"One loader process makes {rate:.1f} samples/s (1024x768 JPEG).\n")
    report_padding(processor, [caption for caption, _ in captions], args.batch_size)


if __name__ == "__main__":
    main()
