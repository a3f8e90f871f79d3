"""What to run first on any GPU: what a training costs there, in at most eight minutes.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --detector yolo11n.pt --tokenizer CLIP_FOLDER --images PHOTOGRAPHS --json gpu.json

Nothing is downloaded. Weights are random; without `--images` and `--tokenizer`, images are noise and captions made up,
which changes no time of the models. The parts run in the order of their value, each with a limit. What was not
reached, not installed or too large for the memory is named. Tables in Markdown and one line of JSON come at the end.

| part | what is measured |
|---|---|
| matmul | products of large matrices: the peak that shares refer to |
| step | steps in bfloat16, ours whole and in mini-batches, written plainly, and those of open_clip and \
sentence-transformers where they are installed |
| loader | rows per second of one loader process, and the number of processes that keep up with the step |
| pairs | `fastgoal pairs`, with the detector of `--detector`, and its models alone |
| evaluation | embedding images and captions, and all recalls |
| compile | our step under `torch.compile`, on request |
| l14 | the step of a ViT-L/14 in mini-batches, on request |
"""

import argparse
import itertools
import json
import os
import random
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel, CLIPProcessor
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from benchmarks.loader import ROWS, SIZES, Caption, make_row, read_captions, report_speed
from benchmarks.pairs import build_matcher, time_rounds
from benchmarks.random_clip import SHAPES, TOKENS, build_model, build_processor
from benchmarks.timing import add_device_option, timed
from benchmarks.train_step import (
    GLOBAL,
    OURS,
    PLAIN,
    Batch,
    Step,
    build_steps,
    count_flops,
    idle_optimizer,
    make_batch,
    matmul_peak,
    peak_gib,
    train_once,
)
from fastgoal.processing.builders.engine import count_cores, decoding_threads
from fastgoal.processing.data.forms.registry import load_source
from fastgoal.trainer.evaluation.measures.embeddings import encode_source
from fastgoal.trainer.evaluation.measures.retrieval import retrieval_metrics

LIMITS = {"matmul": 20, "step": 180, "loader": 40, "pairs": 90, "evaluation": 90, "compile": 120, "l14": 120}
"""Seconds that each part may take, in the order in which they run."""
ON_REQUEST = ("compile", "l14")
ROUNDS = 5

Row = dict[str, Any]


class Bench:
    """The models, data and results of a run.

    Args:
        args: The command line.
        work: An empty folder.
    """

    def __init__(self, args: argparse.Namespace, work: Path):
        self.args, self.work, self.rng = args, work, random.Random(0)
        self.on_gpu = args.device.startswith("cuda")
        self.captions: list[Caption] = read_captions(args.captions, self.rng)
        self.batch_size, self.mini_batch = (4, 2) if args.tiny else (256, 32)
        self.peak = 0.0  # FLOP/s of matrix products
        self.pairs_per_second = 0.0  # of our step
        self.end = 0.0  # of the part that runs, on the monotonic clock
        self.notes: list[str] = []

    def prepare(self, shape: str) -> tuple[Any, Any, Batch]:
        """Return a model, its processor and a batch."""
        processor = build_processor(self.args.tokenizer, shape)
        chosen = self.rng.sample(self.captions, self.batch_size)
        batch = make_batch(processor, [make_row(*caption, self.rng, SIZES[0]) for caption in chosen])
        model = build_model(shape, thin=self.args.tiny).to(self.args.device).train()
        return model, processor, batch.to(self.args.device)

    def time_step(self, name: str, model: Any, step: Step, batch: Batch, work: int = 0) -> Row:
        """Return seconds, speed, share of the peak and memory of a training step; `work` counts its operations."""
        optimizer, device = idle_optimizer(model), self.args.device

        def run() -> None:
            train_once(model, step, batch, optimizer, device, is_bf16=True)

        run()  # warm up
        memory = peak_gib(run) if self.on_gpu else 0.0
        rounds = itertools.takewhile(lambda done: done < 1 or time.monotonic() < self.end, range(ROUNDS))
        seconds = min(float(timed(run, device)[0]) for _ in rounds)
        row: Row = {"step": name, "seconds": round(seconds, 4), "pairs/s": round(self.batch_size / seconds, 1)}
        row["share of the peak"] = round(work / seconds / self.peak, 3) if work and self.peak else None
        return row | {"peak GiB": round(memory, 2) if self.on_gpu else None}

    def time_steps(self, steps: dict[str, Callable[[], Row]]) -> Iterator[Row]:
        """Yield the rows of steps in order while there is time; note those that fail or are not reached."""
        for name, measure in steps.items():
            if time.monotonic() > self.end:
                self.notes.append(f"{name}: not reached")
                continue
            try:
                yield measure()
            except (RuntimeError, ImportError, TypeError, AttributeError) as error:  # also too little memory
                self.notes.append(f"{name}: {str(error).splitlines()[0]}")
            if self.on_gpu:
                torch.cuda.empty_cache()


def measure_matmul(bench: Bench) -> list[Row]:
    bench.peak = matmul_peak(bench.args.device, torch.bfloat16, 256 if bench.args.tiny else 8192)
    return [{"precision": "bfloat16", "TFLOP/s": round(bench.peak / 1e12, 3)}]


def measure_steps(bench: Bench, shape: str = "", only: tuple[str, ...] = ()) -> list[Row]:
    shape = shape or bench.args.model
    model, processor, batch = bench.prepare(shape)
    steps, trainer = build_steps(model, processor, bench.args.device, str(bench.work))
    trainer.current_gradient_accumulation_steps = 1
    work = {name: count_flops(model, steps[name], batch) for name in (OURS, GLOBAL)}
    compiled = torch.compile(model)
    named = {
        OURS: steps[OURS],
        f"our step, mini-batches of {bench.mini_batch}": lambda model, batch: trainer._cached_step(
            model, dict(batch.ours), bench.mini_batch
        ),
        "our step, compiled": lambda _, batch: trainer.compute_loss(compiled, dict(batch.ours)),
        f"our step, {PLAIN}": steps[PLAIN],
        f"{GLOBAL}, ours": steps[GLOBAL],
        f"{GLOBAL}, plain transformers": plain_step,
    }
    measures = {
        # Shares are of the operations that are needed, not of those that mini-batches or another style repeat.
        name: lambda name=name, step=step: bench.time_step(name, model, step, batch, work[name_of(name)])
        for name, step in named.items()
        if name in only or (not only and "compiled" not in name)
    }
    if not only:
        for package, build in (("open_clip", open_clip_step), ("sentence_transformers", sentence_transformers_step)):
            name = f"{GLOBAL}, {package}"
            if find_spec(package) is None:
                bench.notes.append(f"{name}: not installed")
                continue
            measures[name] = lambda name=name, build=build: bench.time_step(  # type: ignore[misc]
                name, *build(bench, shape), batch, work[GLOBAL]
            )
    rows = list(bench.time_steps(measures))
    if not shape or shape == bench.args.model:
        bench.pairs_per_second = next((row["pairs/s"] for row in rows if row["step"] == OURS), bench.pairs_per_second)
    return rows


def name_of(step: str) -> str:
    """Return the name of the step that does the same work."""
    return GLOBAL if step.startswith(GLOBAL) else OURS


def plain_step(model: Any, batch: Batch) -> torch.Tensor:
    """Return CLIP's loss of whole images and captions, as transformers computes it."""
    names = ("input_ids", "attention_mask", "pixel_values")
    return CLIPModel.forward(model, **{name: batch.ours[name] for name in names}, return_loss=True).loss


def open_clip_step(bench: Bench, shape: str) -> tuple[Any, Step]:
    """Return a model of open_clip of the same shape, and its step."""
    from open_clip import ClipLoss
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    config = build_model(shape, thin=bench.args.tiny).config
    vision, text = config.vision_config, config.text_config
    model = CLIP(
        config.projection_dim,
        CLIPVisionCfg(
            layers=vision.num_hidden_layers,
            width=vision.hidden_size,
            head_width=vision.hidden_size // vision.num_attention_heads,
            mlp_ratio=vision.intermediate_size / vision.hidden_size,
            patch_size=vision.patch_size,
            image_size=vision.image_size,
        ),
        CLIPTextCfg(
            context_length=TOKENS,
            width=text.hidden_size,
            heads=text.num_attention_heads,
            layers=text.num_hidden_layers,
            mlp_ratio=text.intermediate_size / text.hidden_size,
        ),
        quick_gelu=True,
    )
    loss = ClipLoss()
    # open_clip pads texts to the length of the model.
    step = lambda model, batch: loss(*model(batch.ours["pixel_values"], batch.padded["caption"]))  # noqa: E731
    return model.to(bench.args.device).train(), step


def sentence_transformers_step(bench: Bench, shape: str) -> tuple[Any, Step]:
    """Return a model of sentence-transformers of the same shape, and its step."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    folder = bench.work / "sentence-transformers"
    config, processor = build_model(shape, thin=bench.args.tiny).config, build_processor(bench.args.tokenizer, shape)
    towers = {name: getattr(config, name).to_dict() for name in ("text_config", "vision_config")}
    CLIPModel(CLIPConfig(**towers, projection_dim=config.projection_dim)).save_pretrained(folder)
    CLIPProcessor(processor.image_processor, processor.tokenizer).save_pretrained(folder)
    model = SentenceTransformer(modules=[Transformer(str(folder))], device=bench.args.device)
    both = ("query_to_doc", "doc_to_query")
    loss = MultipleNegativesRankingLoss(model, scale=100.0, directions=both, partition_mode="per_direction")

    def step(model: Any, batch: Batch) -> torch.Tensor:
        ours = batch.ours
        images = {"pixel_values": ours["pixel_values"], "modality": "image"}
        texts = {name: ours[name] for name in ("input_ids", "attention_mask")} | {"modality": "text"}
        return loss([images, texts], None)

    return model.train(), step


def measure_loader(bench: Bench) -> list[Row]:
    processor, rows = build_processor(bench.args.tokenizer, bench.args.model), []
    for size in SIZES[:1] if bench.args.tiny else SIZES:
        chosen = bench.rng.sample(bench.captions, 4 if bench.args.tiny else ROWS)
        made = [make_row(*caption, bench.rng, size) for caption in chosen]
        for name, cost in report_speed(processor, made, 16).items():
            row: Row = {"images": "{}x{}".format(*size), "loader": name, "ms a row": round(cost, 2)}
            row["processes for our step"] = round(bench.pairs_per_second * cost / 1000, 1)
            rows.append(row)
    return rows


def write_images(bench: Bench, count: int) -> Path:
    """Write an image folder with captions, of the photographs of `--images` or of noise; files repeat."""
    folder = bench.work / f"images{count}"
    folder.mkdir()
    given = sorted(bench.args.images.rglob("*.jpg"))[:64] if bench.args.images else []
    several = given or [None] * min(count, 4 if bench.args.tiny else 64)
    contents = [make_row(*bench.captions[0], bench.rng, SIZES[0], path)["image"]["bytes"] for path in several]
    lines = []
    for number in range(count):
        file, first = folder / f"{number}.jpg", number % len(contents)
        if number == first:
            file.write_bytes(contents[number])
        else:
            file.hardlink_to(folder / f"{first}.jpg")
        caption = bench.captions[number % len(bench.captions)][0]
        lines.append(json.dumps({"file_name": f"{number}.jpg", "caption": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def measure_pairs(bench: Bench) -> list[Row]:
    args, images = bench.args, 4 if bench.args.tiny else 128
    if args.detector == "none":
        bench.notes.append("pairs: without a detector; name one with --detector yolo11n.pt")
    options = Namespace(**vars(args), rounds=2, images_per_round=images // 2, batch_size=4 if args.tiny else 256)
    options.images, options.num_workers = write_images(bench, images), decoding_threads(count_cores())
    options.dtype = "float32" if args.tiny else "bfloat16"
    model, processor = build_matcher(options, thin=args.tiny)
    speed = time_rounds(options, model, processor, bench.work)
    return [{"model": args.model, "detector": args.detector, "images/s": round(speed, 2)}]


def measure_evaluation(bench: Bench) -> list[Row]:
    args, count = bench.args, 8 if bench.args.tiny else 5000
    model = build_model(args.model, thin=args.tiny).to(args.device, torch.float32 if args.tiny else torch.bfloat16)
    processor, source = build_processor(args.tokenizer, args.model), load_source(write_images(bench, count))
    start = time.perf_counter()
    encoded = encode_source(model.eval(), processor, source, 256, 0 if args.tiny else count_cores())
    embedded = time.perf_counter()
    device = args.device if bench.on_gpu else "cpu"
    embeds = (encoded.image_embeds.to(device), encoded.text_embeds.to(device))
    retrieval_metrics(*embeds, encoded.text_to_image)
    end = time.perf_counter()
    row: Row = {"images": count, "captions": len(encoded.captions), "embedding s": round(embedded - start, 2)}
    return [row | {"recalls s": round(end - embedded, 2)}]


def measure_compiled(bench: Bench) -> list[Row]:
    return measure_steps(bench, only=("our step, compiled",))


def measure_large(bench: Bench) -> list[Row]:
    return measure_steps(bench, "l14", (OURS, f"our step, mini-batches of {bench.mini_batch}"))


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "matmul": measure_matmul,
    "step": measure_steps,
    "loader": measure_loader,
    "pairs": measure_pairs,
    "evaluation": measure_evaluation,
    "compile": measure_compiled,
    "l14": measure_large,
}


def table(rows: list[Row]) -> str:
    """Return rows as a Markdown table."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([row[name] for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join('' if cell is None else str(cell) for cell in line)} |" for line in lines)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the parts, print their tables, and return all results."""
    disable_progress_bar()
    set_verbosity_error()
    torch.manual_seed(0)
    start, results = time.monotonic(), dict[str, Any]()
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else f"{os.cpu_count()} CPU cores"
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        for name, measure in PARTS.items():
            if name in ON_REQUEST and name not in args.also:
                continue
            bench.end = min(time.monotonic() + LIMITS[name], start + 60 * args.minutes)
            if time.monotonic() >= bench.end:
                bench.notes.append(f"{name}: not reached")
                continue
            try:
                results[name] = measure(bench)
            except (RuntimeError, ImportError, OSError, ValueError) as error:
                bench.notes.append(f"{name}: {str(error).splitlines()[0]}")
    shape = f"ViT-{args.model.upper()}{', two thin layers' if args.tiny else ''}"
    setting = f"{shape}, batch {bench.batch_size}, bfloat16, {device}, torch {torch.__version__}"
    print(f"\n{setting}, {time.monotonic() - start:.0f} s\n")
    for name, rows in results.items():
        print(f"**{name}**\n\n{table(rows)}\n" if rows else "")
    for note in bench.notes:
        print(f"- {note}")
    report = {"setting": setting, "results": results, "notes": bench.notes}
    print(f"\n{json.dumps(report)}")
    return report


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_option(parser)
    parser.add_argument("--model", choices=tuple(SHAPES), default="b16", help="a shape of OpenAI's CLIPs")
    parser.add_argument("--minutes", type=float, default=8.0, help="limit of all parts")
    parser.add_argument("--also", nargs="+", choices=ON_REQUEST, default=[], help="parts on request")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of JPEG photographs")
    parser.add_argument("--captions", metavar="FILE", help="JSON lines with `caption`; needs --tokenizer")
    parser.add_argument("--tokenizer", metavar="NAME", help="CLIP's tokenizer: a folder or a Hub id")
    parser.add_argument("--detector", default="none", help="detector of `pairs`, such as yolo11n.pt")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the results")
    parser.add_argument("--tiny", action="store_true", help="tiny models and data, to try the script on a CPU")
    args = parser.parse_args(argv)
    if args.captions and not args.tokenizer:
        parser.error("--captions needs --tokenizer.")
    return args


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = parse(argv)
    report = run(args)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


if __name__ == "__main__":
    main()
