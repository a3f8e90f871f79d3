"""How long a training step takes, side by side with what it could cost at best and with the reference style.

    python benchmarks/train_step.py --model b32 --captions CAPTIONS.jsonl --tokenizer openai/clip-vit-base-patch32

Weights are random and pictures are noise, which changes no time; captions are real where `--captions` names a JSON
lines file with a `caption` in each line, else of like lengths. Each round takes a new batch and times every step on
it, in a new order, on one model with one optimiser; the table has medians over the rounds, and the floating point
operations of each step, which do not depend on what else the machine does. On a GPU it also has the peak memory and the
share of the measured matmul peak, and `--compile` adds our step under `torch.compile`.
"""

import argparse
import copy
import io
import json
import logging
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from fastgoal import FastGoalCLIPModel, FastGoalCollator, FastGoalProcessor, FastGoalTrainer, FastGoalTrainingArguments
from fastgoal.modeling_fastgoal import clip_loss, token_similarity_loss
from fastgoal.modeling_fastgoal.towers_fastgoal import pool_patches, pool_text
from fastgoal.processing.sentences import split_sentences
from fastgoal.trainer.batches.samplers import CaptionLengthSampler

TOKENS = 248
LOADER_ROWS = 64


@dataclass
class Batch:
    """A batch as our collator makes it, and the same one as the reference style wants it."""

    ours: dict[str, torch.Tensor]
    padded: dict[str, torch.Tensor]  # `caption` and `sentence` ids, padded to 248
    captions: list[str]
    sentences: list[tuple[int, int]]  # start and end in the caption
    regions: list[list[int]]  # numbers of the patches

    def to(self, device: str) -> "Batch":
        def move(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: value.to(device) for name, value in tensors.items()}

        return Batch(move(self.ours), move(self.padded), self.captions, self.sentences, self.regions)


Step = Callable[[Any, Batch], torch.Tensor]


def build_model(patch_size: int) -> FastGoalCLIPModel:
    """A CLIP ViT-B with random weights that reads 248 tokens."""
    config = CLIPConfig(text_config={"eos_token_id": 49407}, vision_config={"patch_size": patch_size})
    return FastGoalCLIPModel.from_clip(CLIPModel(config), TOKENS)


def build_processor(tokenizer: str | None, patch_size: int) -> FastGoalProcessor:
    """CLIP's processor; without a tokenizer one that knows letters, each letter of a text being a word."""
    if tokenizer:
        tokens = AutoTokenizer.from_pretrained(tokenizer)
    else:
        letters = [f"{letter}</w>" for letter in ".abcdefghijklmnopqrstuvwxyz"]
        vocab = {token: index for index, token in enumerate([*letters, *(x.removesuffix("</w>") for x in letters)])}
        vocab |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
        tokens = CLIPTokenizer(vocab=vocab, merges=[])
    tokens.model_max_length = TOKENS
    images = CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    return FastGoalProcessor(images, tokens, patch_size=patch_size)


def read_captions(path: str | None, rng: random.Random) -> list[tuple[str, list[tuple[int, int]]]]:
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


def make_batch(processor: FastGoalProcessor, rows: list[dict[str, Any]]) -> Batch:
    captions = [row["caption"] for row in rows]
    chosen = [row["sentences"][row["pairs"][0]["sentence"]] for row in rows]
    sentences = [(sentence["start"], sentence["end"]) for sentence in chosen]
    texts = [caption[start:end] for caption, (start, end) in zip(captions, sentences)]
    options: dict[str, Any] = {"padding": "max_length", "max_length": TOKENS, "truncation": True}
    padded = {
        name: processor.tokenizer(values, return_tensors="pt", **options)["input_ids"]
        for name, values in (("caption", captions), ("sentence", texts))
    }
    ours = FastGoalCollator(processor)(rows)
    regions = [mask.nonzero().flatten().tolist() for mask in ours["region_mask"]]
    return Batch(ours, padded, captions, sentences, regions)


def reference_losses(model: FastGoalCLIPModel, batch: Batch, tokenizer: Any) -> dict[str, torch.Tensor]:
    """FAST-GOAL's losses in the style of the published training scripts, with correct spans and boxes.

    Three forwards: the model on whole images and crops, captions and sentences, all of 248 tokens; then each tower on
    the same again for its tokens. Regions and sentences are pooled one by one, and each caption is tokenised here to
    find its sentence.
    """
    ours, size = batch.ours, len(batch.captions)
    pixels = torch.cat([ours["pixel_values"], ours["local_pixel_values"]])
    ids = torch.cat([batch.padded["caption"], batch.padded["sentence"]])
    outputs = CLIPModel.forward(model, input_ids=ids, pixel_values=pixels, output_hidden_states=True)
    vision = model.vision_model(pixels, output_hidden_states=True)
    text = model.text_model(ids, output_hidden_states=True)
    patches, tokens = vision.hidden_states[-1][:size, 1:], text.hidden_states[-1][:size]

    regions, spans = [], []
    for i, (caption, (start, end)) in enumerate(zip(batch.captions, batch.sentences)):
        regions.append(patches[i : i + 1, batch.regions[i]].mean(dim=1))
        before = len(tokenizer(caption[:start])["input_ids"]) - 1 if start else 1  # BOS counts, EOS does not
        count = len(tokenizer(caption[start:end])["input_ids"]) - 2
        spans.append(tokens[i : i + 1, before : min(before + count, TOKENS - 1)].mean(dim=1))
    region = model.visual_projection(model.vision_model.post_layernorm(torch.cat(regions)))
    sentence = model.text_projection(model.text_model.final_layer_norm(torch.cat(spans)))
    images, texts = outputs.image_embeds, outputs.text_embeds
    scale = model.logit_scale.exp()

    def likeness(pooled: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
        cosine = torch.diag(F.normalize(pooled, dim=-1) @ F.normalize(local, dim=-1).T)
        return F.mse_loss(cosine, torch.ones_like(cosine))

    parts = {
        "loss_global": clip_loss(images[:size], texts[:size], scale),
        "loss_local": clip_loss(images[size:], texts[size:], scale),
        "loss_tsl_image": likeness(region, images[size:]),
        "loss_tsl_text": likeness(sentence, texts[size:]),
    }
    total = parts["loss_global"] + 0.5 * parts["loss_local"] + parts["loss_tsl_image"] + parts["loss_tsl_text"]
    return {"loss": total, **parts}


def build_steps(
    model: FastGoalCLIPModel, processor: FastGoalProcessor, device: str, folder: str
) -> tuple[dict[str, Step], FastGoalTrainer]:
    """What is timed, by name: from a model and a batch to the loss whose backward pass follows."""

    def trainer(objective: str) -> FastGoalTrainer:
        args = FastGoalTrainingArguments(output_dir=folder, objective=objective, use_cpu=device == "cpu")
        return FastGoalTrainer(model=model, args=args, processing_class=processor)

    fast_goal, global_local, plain = trainer("fast_goal"), trainer("global_local"), trainer("global")

    def without(batch: Batch, *prefixes: str) -> dict[str, torch.Tensor]:
        return {name: value for name, value in batch.ours.items() if not name.startswith(prefixes)}

    def towers(model: Any, batch: Batch) -> torch.Tensor:
        inputs = batch.ours
        pixels = torch.cat([inputs["pixel_values"], inputs["local_pixel_values"]])
        embeds = [model.get_image_features(pixel_values=pixels).pooler_output]
        for prefix in ("", "local_"):
            ids, mask = inputs[f"{prefix}input_ids"], inputs.get(f"{prefix}attention_mask")
            embeds.append(model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output)
        return torch.stack([embed.float().square().mean() for embed in embeds]).sum()

    steps: dict[str, Step] = {
        "our step": lambda model, batch: fast_goal.compute_loss(model, dict(batch.ours)),
        "our step without TSL": lambda model, batch: global_local.compute_loss(
            model, without(batch, "region", "sentence")
        ),
        "the two towers alone": towers,
        "plain CLIP fine-tuning": lambda model, batch: plain.compute_loss(
            model, without(batch, "region", "sentence", "local_")
        ),
        "reference style": lambda model, batch: reference_losses(model, batch, processor.tokenizer)["loss"],
    }
    return steps, fast_goal


def check_equal(model: FastGoalCLIPModel, trainer: FastGoalTrainer, batch: Batch, tokenizer: Any) -> float:
    """Largest difference between the losses of the reference style and ours, part by part.

    Raises:
        RuntimeError: They are not the same.
    """
    with torch.no_grad():
        theirs = reference_losses(model, batch, tokenizer)
        ours = trainer.loss_parts(model(**batch.ours), batch.ours)
    gap = max(abs(ours[name].item() - theirs[name].item()) for name in theirs)
    if not gap < 1e-3:
        raise RuntimeError(f"The reference style does not compute our loss: {theirs} against {ours}.")
    return gap


def timed(run: Callable[[], Any], device: str) -> tuple[float, float]:
    """Wall-clock and processor seconds of a call."""
    if device != "cpu":
        torch.cuda.synchronize()
    wall, processor = time.perf_counter(), time.process_time()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor


def tsl_seconds(model: Any, batch: Batch, device: str, repeats: int = 20) -> float:
    """What TSL adds to a step: pooling, norms, projections and its loss, there and back; median of the repeats."""
    inputs = batch.ours
    rows, tokens = inputs["sentence_mask"].shape
    widths = [model.config.vision_config.hidden_size, model.config.text_config.hidden_size]
    patches, words = (
        torch.randn(rows, count, width, device=device, requires_grad=True)
        for count, width in zip((inputs["region_mask"].shape[1], tokens), widths, strict=True)
    )
    targets = torch.randn(2, rows, model.config.projection_dim, device=device, requires_grad=True)

    def run() -> None:
        # What the towers give, as `towers_fastgoal` reads it: the class token first, the last layer before the norm.
        vision = SimpleNamespace(last_hidden_state=torch.cat([patches[:, :1], patches], dim=1))
        text = SimpleNamespace(hidden_states=[words])
        pooled = {
            "region_mask": pool_patches(model, vision, inputs["region_mask"]),
            "sentence_mask": pool_text(model, text, inputs["sentence_mask"]),
        }
        losses = [
            token_similarity_loss(embeds, target, inputs[mask].bool().any(dim=1))
            for (mask, embeds), target in zip(pooled.items(), targets, strict=True)
        ]
        torch.stack(losses).sum().backward()

    run()
    seconds = statistics.median(timed(run, device)[0] for _ in range(repeats))
    model.zero_grad()
    return seconds


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=dtype) for _ in range(2))
    seconds = [timed(lambda: [a @ b for _ in range(10)], device)[0] for _ in range(4)]
    return 10 * 2 * 8192**3 / min(seconds)


def count_flops(model: Any, step: Step, batch: Batch) -> int:
    """Floating point operations of a step's products, forward and backward, counted without computing them."""
    from torch.utils.flop_counter import FlopCounterMode

    meta, batch = copy.deepcopy(model).to("meta"), batch.to("meta")
    # transformers looks into a mask for padding, which a tensor without values cannot answer; the count is the same.
    batch.ours = {name: value for name, value in batch.ours.items() if "attention_mask" not in name}
    with FlopCounterMode(display=False) as counter:
        step(meta, batch).backward()
    return int(counter.get_total_flops())


def kept_bytes(model: Any, step: Step, batch: Batch) -> int:
    """Bytes that a step's forward under bf16 autocast keeps for its backward pass, the parameters not counted."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = tensor  # holding it keeps its place from being given to another
        return tensor

    device = batch.ours["input_ids"].device.type
    with torch.autocast(device, torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step(model, batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def report_flops(model: Any, steps: dict[str, Step], batches: list[Batch]) -> None:
    """Operations of each step, medians over the batches."""
    work = {name: statistics.median(count_flops(model, step, b) for b in batches) for name, step in steps.items()}
    base, towers = work["our step"], work["the two towers alone"]
    print("| step | TFLOP | against our step | against the towers |\n|---|---|---|---|")
    for name, value in work.items():
        print(f"| {name} | {value / 1e12:.3f} | {value / base:.3f}x | {value / towers:.4f}x |")


def loader_rate(processor: FastGoalProcessor, rows: list[dict[str, Any]], batch_size: int) -> float:
    """Samples per second that one loader process makes: decode, cut out, resize, tokenise."""
    collate, threads = FastGoalCollator(processor), torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    collate(rows[:batch_size])
    start = time.perf_counter()
    for first in range(0, len(rows), batch_size):
        collate(rows[first : first + batch_size])
    rate = len(rows) / (time.perf_counter() - start)
    torch.set_num_threads(threads)
    return rate


def padded_share(batches: list[torch.Tensor]) -> float:
    """Share of the tokens of some batches that is padding, from the lengths of each batch's captions."""
    real = sum(int(lengths.sum()) for lengths in batches)
    return 1 - real / sum(len(lengths) * int(lengths.max()) for lengths in batches)


def report_padding(processor: FastGoalProcessor, captions: list[str], batch_size: int) -> None:
    """Share of padding in the captions with each way to make batches."""
    ids = processor.tokenizer(captions, truncation=True)["input_ids"]
    lengths = torch.tensor([len(row) for row in ids])
    shuffled = lengths[torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0))]
    grouped = lengths[list(CaptionLengthSampler([len(caption) for caption in captions], batch_size))]
    print(f"\nTokens of a caption: mean {lengths.float().mean():.0f}, longest {lengths.max()}; share of padding:\n")
    print("| batches | padded tokens |\n|---|---|")
    print(f"| all to {TOKENS} tokens | {1 - lengths.float().mean() / TOKENS:.1%} |")
    print(f"| each to its own longest | {padded_share(list(shuffled.split(batch_size))):.1%} |")
    print(f"| the same, `--group_by_caption_length` | {padded_share(list(grouped.split(batch_size))):.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("b32", "b16"), default="b32", help="ViT-B with patches of 32 or 16 pixels")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--group-by-length", action="store_true", help="take batches as --group_by_caption_length makes them"
    )
    parser.add_argument("--count", action="store_true", help="count operations and memory, time nothing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast")
    parser.add_argument("--compile", action="store_true", help="also time our step under torch.compile")
    parser.add_argument("--captions", metavar="FILE", help="JSON lines with `caption`; needs --tokenizer")
    parser.add_argument("--tokenizer", metavar="NAME", help="CLIP's tokenizer: a folder or a Hub id")
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa", help="as transformers names them")
    parser.add_argument("--floor", action="store_true", help="only our step, without TSL, and the towers alone")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if bool(options.captions) != bool(options.tokenizer):
        parser.error("--captions and --tokenizer go together; without both, texts of letters are made up.")
    # Random weights have gradients whose squares are denormal numbers, with which processors are many times slower; a
    # trained model has none. Threads take this setting from the one that starts them, so it comes first.
    torch.set_flush_denormal(True)
    disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    device, size = options.device, options.batch_size

    patch_size = int(options.model[1:])
    model: Any = build_model(patch_size).to(device)
    processor = build_processor(options.tokenizer, patch_size)
    captions = read_captions(options.captions, rng)
    pool = [make_row(*captions[i], rng) for i in rng.sample(range(len(captions)), min(len(captions), LOADER_ROWS))]

    with tempfile.TemporaryDirectory() as folder:
        steps, trainer = build_steps(model, processor, device, folder)
        gap = check_equal(model, trainer, make_batch(processor, pool[:4]).to(device), processor.tokenizer)
        threads = f", {torch.get_num_threads()} threads" if device == "cpu" else f" ({torch.cuda.get_device_name()})"
        grouped = ", grouped by length" if options.group_by_length else ""
        print(f"ViT-B/{patch_size}, batch {size}{grouped}, {options.precision}, {device}{threads}")
        print(f"The reference style's losses equal ours to {gap:.0e}.\n")
        model.train()
        model.set_attn_implementation(options.attention)
        if options.floor:
            steps = {name: steps[name] for name in ("our step", "our step without TSL", "the two towers alone")}
        if options.compile:
            compiled = torch.compile(model)
            steps["our step, compiled"] = lambda _, batch: trainer.compute_loss(compiled, dict(batch.ours))
        # A learning rate of 0 keeps the weights, so that every step of every round does the same work.
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)

        def train(step: Step, batch: Batch) -> None:
            with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=options.precision == "bf16"):
                loss = step(model, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(options.seed)).tolist()
        if options.group_by_length:
            order = list(CaptionLengthSampler([len(caption) for caption, _ in captions], size, options.seed))
        starts = rng.sample(range(0, len(order) - size + 1, size), len(order) // size)

        def draw() -> Batch:
            start = starts.pop()
            return make_batch(processor, [make_row(*captions[i], rng) for i in order[start : start + size]]).to(device)

        warm_up = [*steps] if device != "cpu" else ["our step"]
        if options.count:
            report_flops(model, steps, [draw() for _ in range(options.rounds)])
            report_padding(processor, [caption for caption, _ in captions], size)
            row = make_row(*max(captions, key=lambda caption: len(caption[0])), rng)
            kept = [kept_bytes(model.train(), steps["our step"], make_batch(processor, [row] * n)) for n in (1, 3)]
            print(f"\nA pair with a caption of {TOKENS} tokens keeps {(kept[1] - kept[0]) / 2 / 1e6:.0f} MB in bf16.")
            return
        for name in warm_up:
            for _ in range(3 if device != "cpu" else 1):
                train(steps[name], draw())
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
        flops: dict[str, list[int]] = {name: [] for name in steps}
        for turn in range(options.rounds):
            batch = draw()
            for name in rng.sample([*steps], len(steps)):
                times[name].append(timed(lambda name=name, batch=batch: train(steps[name], batch), device))
                same = "our step" if name == "our step, compiled" else name
                flops[name].append(count_flops(model, steps[same], batch))
                wall, cpu = times[name][-1]
                print(f"round {turn + 1}: {name} {wall:.2f} s, {cpu:.2f} CPU s", file=sys.stderr, flush=True)

        medians = {name: [statistics.median(column) for column in zip(*values)] for name, values in times.items()}
        base = medians["our step"]
        work = {name: statistics.median(values) for name, values in flops.items()}
        columns = ["step", "seconds", "CPU seconds", "samples/s", "against our step", "against the towers", "TFLOP"]
        extra = ["peak memory", "share of matmul peak"] if device != "cpu" else []
        peak = matmul_peak(device, torch.bfloat16 if options.precision == "bf16" else torch.float32) if extra else 0.0
        print(f"Medians of {options.rounds} interleaved rounds, of seconds and of each round's ratio of seconds;")
        print("in brackets the same of the CPU seconds:\n")
        print(f"| {' | '.join([*columns, *extra])} |\n|{'---|' * len([*columns, *extra])}")
        for name, (wall, cpu) in medians.items():
            cells = [name, f"{wall:.3f}", f"{cpu:.3f}", f"{size / wall:.2f}"]
            for other in ("our step", "the two towers alone"):
                # Rounds have batches of their own: each time is compared with the other on the same batch.
                ratios = [[a / b for a, b in zip(x, y)] for x, y in zip(times[name], times[other], strict=True)]
                against = [statistics.median(column) for column in zip(*ratios)]
                cells.append(f"{against[0]:.3f}x" + ("" if extra else f" ({against[1]:.3f}x)"))
            cells.append(f"{work[name] / 1e12:.2f} ({work[name] / work['our step']:.3f}x)")
            if extra:
                torch.cuda.reset_peak_memory_stats()
                train(steps[name], draw())
                cells.append(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
                cells.append(f"{work[name] / wall / peak:.0%}")
            print(f"| {' | '.join(cells)} |")
        own = tsl_seconds(model, draw(), device)
        print(f"\nTSL's own work takes {1000 * own:.1f} ms, {own / base[0]:.2%} of our step.")
        if extra:
            print(f"\nMeasured matmul peak: {peak / 1e12:.0f} TFLOP/s.")

    rate = loader_rate(processor, pool, size)
    print(f"\nOne loader process makes {rate:.1f} samples/s (1024x768 JPEG); our step takes {size / base[0]:.2f}.")
    report_padding(processor, [caption for caption, _ in captions], size)


if __name__ == "__main__":
    main()
