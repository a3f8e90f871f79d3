"""Measure the speed of `fastgoal pairs`, next to that of its models alone and of SAM.

    python -m benchmarks.pairs --images PHOTOGRAPHS --detector yolo11n.pt --tokenizer openai/clip-vit-base-patch32

`--images` is a folder with metadata.jsonl. The model has the shape of ViT-B/32 and random weights, which do not change
the time. Each round takes the next photographs and times, in turn, all of `fastgoal pairs` (read, decode, detect, crop,
embed, match, write) and the models alone on the same inputs, prepared beforehand. Then the benchmark times SAM's part
of GOAL's method on one image, and watches the memory of a long run.
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import SamConfig, SamModel
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from benchmarks.random_clip import SHAPES, build_model, build_processor
from benchmarks.timing import Rounds, add_device_option, now, timed
from fastgoal.processing.builders.engine import count_cores, decoding_threads
from fastgoal.processing.builders.pairs import STAGES, PairSettings, write_pairs
from fastgoal.processing.data.forms.registry import load_source
from fastgoal.processing.detectors.load import load_detector
from fastgoal.processing.embedding import TOKENS_PER_CROP, batches_by_tokens
from fastgoal.processing.images import load_image
from fastgoal.processing.pixels import PixelReader

# GOAL's: transformers' mask generation with its grid of 32 x 32 points, 128 of them in one forward.
SAM_POINTS, SAM_POINTS_AT_ONCE = 1024, 128
STAGE_MEANINGS = {
    "decode": "waiting for threads that read, decode and resize for the detector",
    "detect": "detector, non-maximum suppression, merging of boxes",
    "crop": "waiting for threads that cut and resize crops",
    "sentences": "tokenizer and text tower",
    "image": "normalizing and image tower",
    "write": "matching and parquet",
}


def build_matcher(args: argparse.Namespace, thin: bool = False) -> tuple[Any, Any]:
    """Return a CLIP of a shape of OpenAI or with two thin layers, random weights, and its processor and detector."""
    dtype = torch.float32 if thin else getattr(torch, args.dtype)
    processor = build_processor(args.tokenizer, args.model)
    processor.detector = load_detector(args.detector, device=args.device)
    return build_model(args.model, thin).to(args.device, dtype).eval(), processor


def make_pairs(
    folder: Path, output: Path, model: Any, processor: Any, shard_size: int, args: argparse.Namespace
) -> Any:
    """Run all of `fastgoal pairs` on a folder, and return the summary."""
    return write_pairs(
        load_source(folder, allow_outside_files=True),
        output,
        PairSettings(model="random", shard_size=shard_size),
        lambda: (model, processor),
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        progress=False,
    )


def take_rows(folder: Path, start: int, count: int, target: Path) -> Path:
    """Make a folder of some of the rows, with links to the images."""
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()[start : start + count]
    target.mkdir()
    (target / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for top in {Path(json.loads(line)["file_name"]).parts[0] for line in lines}:
        (target / top).symlink_to((folder / top).resolve())
    return target


class Parts:
    """The models' prepared inputs for some photographs, in the batches that `fastgoal pairs` makes."""

    def __init__(self, folder: Path, model: Any, processor: Any, batch_size: int) -> None:
        self.model, self.detector, self.batch_size = model, processor.detector, batch_size
        rows = list(load_source(folder, allow_outside_files=True))
        images = [load_image(row.image) for row in rows]
        self.prepared = []
        if self.detector:
            self.prepared = [self.detector.prepare(image, row.caption) for image, row in zip(images, rows)]
        regions = processor.propose_regions(images, self.detect() if self.detector else None)
        self.crops = sum(map(len, regions))
        reader = PixelReader(processor.image_processor)
        parts = [(image, region.box) for image, some in zip(images, regions) for region in some]
        batches = reader.normalize_pixels(reader.read(parts)).split(batch_size)
        self.pixels = [batch.to(model.device, model.dtype) for batch in batches]
        texts = {sentence.text for row in rows for sentence in processor.split_sentences(row.caption)}
        lengths = {text: len(processor.tokenizer(text, truncation=True)["input_ids"]) for text in texts}
        self.sentences = len(texts)
        self.texts = [
            processor.tokenizer(batch, padding=True, truncation=True, return_tensors="pt").to(model.device)
            for batch in batches_by_tokens(lengths, batch_size * TOKENS_PER_CROP)
        ]
        self.images = len(images)

    def detect(self) -> list[Any]:
        step = max(1, self.batch_size // 4)
        starts = range(0, len(self.prepared), step)
        return [regions for start in starts for regions in self.detector.detect(self.prepared[start : start + step])]

    @torch.inference_mode()
    def times(self) -> dict[str, np.ndarray]:
        """Return the seconds of each model on all inputs, wall-clock and processor time."""
        model = self.model
        work: dict[str, Callable[[], Any]] = {"detector": self.detect} if self.detector else {}
        work["crops"] = lambda: [model.get_image_features(pixel_values=pixels) for pixels in self.pixels]
        work["sentences"] = lambda: [model.get_text_features(**inputs) for inputs in self.texts]
        return {name: timed(run, str(model.device)) for name, run in work.items()}


WHOLE, ALONE = "**all of `fastgoal pairs`**", "detector + CLIP alone"


def time_rounds(args: argparse.Namespace, model: Any, processor: Any, work: Path) -> float:
    """Time pipeline and models in turn on the same photographs, print tables, and return images/s of the pipeline."""
    rounds, stages, totals = Rounds(), Counter[str](), Counter[str]()
    for number in range(args.rounds):
        folder = take_rows(args.images, number * args.images_per_round, args.images_per_round, work / f"rows{number}")
        parts = Parts(folder, model, processor, args.batch_size)
        times = parts.times() if number % 2 else {}  # the order changes from round to round
        start = now(args.device)
        summary = make_pairs(folder, work / f"pairs{number}", model, processor, args.images_per_round, args)
        rounds.add(WHOLE, (now(args.device) - start) / parts.images)
        times = times or parts.times()
        if sum(summary["regions"].values()) != parts.crops:
            raise RuntimeError("The pipeline and the models alone had different crops.")
        rounds.add(ALONE, np.sum(list(times.values()), axis=0) / parts.images)
        for name, seconds in times.items():
            rounds.add(f"of these, {name}", seconds / parts.images)
        stages.update(summary["stage_seconds"])
        totals.update(images=parts.images, crops=parts.crops, texts=parts.sentences, sentences=summary["sentences"])
        whole, alone = (1 / rounds.seconds[name][-1][0] for name in (WHOLE, ALONE))
        print(f"round {number + 1}: {whole:.2f} images/s, models alone {alone:.2f}", flush=True)
    images = totals["images"]
    print(
        f"\n{images} photographs with {totals['crops'] / images:.1f} crops and {totals['sentences'] / images:.1f} "
        f"sentences each ({totals['texts']} of {totals['sentences']} distinct in their shard); medians of the rounds\n"
        "\n| | s/image | images/s | processor s/image |\n|---|---|---|---|"
    )
    for title in rounds.seconds:
        clock, processor_time = rounds.median(title)
        print(f"| {title} | {clock:.4f} | {1 / clock:.2f} | {processor_time:.4f} |")
    print("\nSpeed relative to the models alone, by round:")
    for title, values in zip(("wall-clock time", "processor time"), rounds.ratios(ALONE, WHOLE).T):
        print(f"- {title}: **{np.median(values):.1%}** (from {values.min():.1%} to {values.max():.1%})")
    print("\n| stage | ms/image | share | meaning |\n|---|---|---|---|")
    for name in STAGES:
        share = stages[name] / max(sum(stages.values()), 1e-9)
        print(f"| {name} | {1000 * stages[name] / images:.2f} | {share:.1%} | {STAGE_MEANINGS[name]} |")
    return float(1 / rounds.median(WHOLE)[0])


@torch.inference_mode()
def time_sam(args: argparse.Namespace) -> float:
    """Return the seconds of SAM's ViT-B for an image: the image encoder once, the mask decoder for every grid point.

    The steps after the decoder are not timed, since random weights give masks of noise: filtering 3,072 masks, removing
    duplicates, drawing masks at full size, and CLIP on their boxes.
    """
    dtype = getattr(torch, args.dtype)
    model = SamModel(SamConfig()).to(args.device, dtype).eval()
    pixels = torch.randn(1, 3, 1024, 1024, device=args.device, dtype=dtype)
    points = torch.rand(SAM_POINTS, 1, 2, device=args.device, dtype=dtype) * 1024
    seconds = []
    for _ in range(args.sam_images):
        start = now(args.device)
        embeddings = model.get_image_embeddings(pixels)
        encoded = now(args.device)
        for batch in points.split(SAM_POINTS_AT_ONCE):
            labels = torch.ones(1, len(batch), 1, dtype=torch.long, device=args.device)
            model(image_embeddings=embeddings, input_points=batch[None], input_labels=labels, multimask_output=True)
        end = now(args.device)
        seconds.append(float((end - start)[0]))
        print(f"SAM ViT-B: {seconds[-1]:.1f} s, of which image encoder {(encoded - start)[0]:.1f} s", flush=True)
    return statistics.median(seconds)


def resident_mb() -> float:
    """Return the resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def watch_memory(args: argparse.Namespace, work: Path) -> None:
    """Run the whole pipeline with a tiny model over many photographs, and sample the memory ten times a second."""
    model, processor = build_matcher(args, thin=True)
    folder = take_rows(args.images, 0, args.memory_images, work / "many")
    samples: list[tuple[float, float]] = []
    over = threading.Event()
    started = time.perf_counter()

    def sample() -> None:
        while not over.wait(0.1):
            samples.append((time.perf_counter() - started, resident_mb()))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        summary = make_pairs(folder, work / "many-pairs", model, processor, 256, args)
    finally:
        over.set()
        thread.join()
    until = samples[-1][0]
    print(f"\n{summary['images']} photographs with a model of two thin layers, {until:.0f} s; MB of memory:\n")
    print("| part of the run | median | highest |\n|---|---|---|")
    for part in range(8):
        values = [mb for at, mb in samples if part <= at / until * 8 < part + 1 or (part == 7 and at == until)]
        print(f"| {part + 1} of 8 | {statistics.median(values):.0f} | {max(values):.0f} |")
    half = np.array([sample for sample in samples if sample[0] > until / 2])
    slope = np.polyfit(half[:, 0] / until * summary["images"], half[:, 1], 1)[0]
    print(f"\nSecond half: {1000 * slope:+.1f} MB for 1,000 photographs.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="folder of photographs with metadata.jsonl"
    )
    parser.add_argument("--tokenizer", required=True, help="folder or Hub id of a CLIP tokenizer")
    parser.add_argument("--detector", default="none", help="detector, as for `fastgoal pairs`")
    parser.add_argument("--model", choices=tuple(SHAPES), default="b32", help="a shape of OpenAI's CLIPs")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="0 skips the comparison")
    parser.add_argument("--images-per-round", type=int, default=20)
    parser.add_argument("--sam-images", type=int, default=1, metavar="N", help="0 skips SAM")
    parser.add_argument("--memory-images", type=int, default=1600, metavar="N", help="0 skips the long run")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=decoding_threads(count_cores()))
    add_device_option(parser)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    args = parser.parse_args()
    disable_progress_bar()
    set_verbosity_error()
    torch.manual_seed(0)
    print(
        f"ViT-{args.model.upper()}, {args.dtype}, {args.device}, {torch.get_num_threads()} threads of torch, "
        f"{args.num_workers} workers, batches of {args.batch_size} crops, torch {torch.__version__}\n"
    )
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        speed = 0.0
        if args.rounds:
            model, processor = build_matcher(args)
            Parts(take_rows(args.images, 0, 4, work / "warm-up"), model, processor, args.batch_size).times()
            speed = time_rounds(args, model, processor, work)
            del model, processor
        if args.sam_images:
            print()
            seconds = time_sam(args)
            if speed:
                print(f"`fastgoal pairs` is {seconds * speed:.0f} times as fast as SAM's encoder and decoder alone.")
        if args.memory_images:
            watch_memory(args, work)


if __name__ == "__main__":
    main()
