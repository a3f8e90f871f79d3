"""How long a training step takes, side by side with what it could cost at best and with the reference style.

    python -m benchmarks.train_step --model b32 --captions CAPTIONS.jsonl --tokenizer openai/clip-vit-base-patch32

Weights are random and pictures are noise, which changes no time; captions are real where `--captions` names a JSON
lines file with a `caption` in each line, else of like lengths. Each round takes a new batch and times every step on
it, in a new order, on one model with one optimizer; the table has medians over the rounds, and the floating point
operations of each step, which do not depend on what else the machine does. On a GPU it also has the peak memory and the
share of the measured matmul peak, and `--compile` adds our step under `torch.compile`.
"""

import argparse
import copy
import logging
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from transformers import CLIPModel
from transformers.utils.logging import disable_progress_bar

from benchmarks.loader import add_caption_options, make_row, make_rows, parse, read_captions
from benchmarks.random_clip import SHAPES, TOKENS, build_model, build_processor
from benchmarks.timing import Rounds, add_device_option, timed
from fastgoal import FastGoalCLIPModel, FastGoalCollator, FastGoalProcessor, FastGoalTrainer, FastGoalTrainingArguments
from fastgoal.modeling_fastgoal import clip_loss, token_similarity_loss
from fastgoal.modeling_fastgoal.towers_fastgoal import pool_patches, pool_text

OURS, FLOOR, GLOBAL, PLAIN = "our step", "the two towers alone", "plain CLIP fine-tuning", "reference style"


@dataclass
class Batch:
    """A batch as our collator makes it, and the same one as the reference style wants it."""

    ours: dict[str, torch.Tensor]
    padded: dict[str, torch.Tensor]  # `caption` and `sentence` ids, padded to 248
    captions: list[str]
    sentences: list[tuple[int, int]]  # start and end in the caption
    regions: list[list[int]]  # numbers of the patches

    def to(self, device: str) -> "Batch":
        ours, padded = ({name: value.to(device) for name, value in part.items()} for part in (self.ours, self.padded))
        return replace(self, ours=ours, padded=padded)


Step = Callable[[Any, Batch], torch.Tensor]


def make_batch(processor: FastGoalProcessor, rows: list[dict[str, Any]]) -> Batch:
    captions = [row["caption"] for row in rows]
    best = [max(row["pairs"], key=lambda pair: pair["score"]) for row in rows]
    chosen = [row["sentences"][pair["sentence"]] for row, pair in zip(rows, best, strict=True)]
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
    the same again for its tokens. Regions and sentences are pooled one by one, and each caption is tokenized here to
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
    model: FastGoalCLIPModel,
    processor: FastGoalProcessor,
    device: str,
    folder: str,
    crop_sizes: Sequence[int] = (),
) -> tuple[dict[str, Step], FastGoalTrainer]:
    """What is timed, by name: from a model and a batch to the loss whose backward pass follows."""

    def trainer(objective: str) -> FastGoalTrainer:
        args = FastGoalTrainingArguments(output_dir=folder, objective=objective, use_cpu=device == "cpu")
        return FastGoalTrainer(model=model, args=args, processing_class=processor)

    def step(objective: str, *left_out: str) -> Step:
        """A trainer's step on the batch without the inputs that begin so."""
        compute = trainer(objective).compute_loss
        return lambda model, batch: compute(model, {k: v for k, v in batch.ours.items() if not k.startswith(left_out)})

    def towers(model: Any, batch: Batch) -> torch.Tensor:
        inputs = batch.ours
        pixels = torch.cat([inputs["pixel_values"], inputs["local_pixel_values"]])
        embeds = [model.get_image_features(pixel_values=pixels).pooler_output]
        for prefix in ("", "local_"):
            ids, mask = inputs[f"{prefix}input_ids"], inputs.get(f"{prefix}attention_mask")
            embeds.append(model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output)
        return torch.stack([embed.float().square().mean() for embed in embeds]).sum()

    whole = step("fast_goal")

    def with_crops(side: int) -> Step:
        """Our step with smaller crops: a part of each crop, since pictures are noise."""

        def run(model: Any, batch: Batch) -> torch.Tensor:
            crops = batch.ours["local_pixel_values"][..., :side, :side]
            return whole(model, replace(batch, ours={**batch.ours, "local_pixel_values": crops}))

        return run

    steps: dict[str, Step] = {
        OURS: whole,
        **{f"our step, crops of {side} pixels": with_crops(side) for side in crop_sizes},
        "our step without TSL": step("global_local", "region", "sentence"),
        FLOOR: towers,
        GLOBAL: step("global", "region", "sentence", "local_"),
        PLAIN: lambda model, batch: reference_losses(model, batch, processor.tokenizer)["loss"],
    }
    return steps, trainer("fast_goal")


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


def train_once(
    model: Any, step: Step, batch: Batch, optimizer: torch.optim.Optimizer, device: str, is_bf16: bool
) -> None:
    """Run a whole training step. A step that has already run its backward pass returns a detached loss."""
    with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=is_bf16):
        loss = step(model, batch)
    if loss.requires_grad:
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def idle_optimizer(model: Any) -> torch.optim.Optimizer:
    """Return an AdamW that keeps the weights, so that every step of every round does the same work."""
    return torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)


def peak_gib(run: Callable[[], Any]) -> float:
    """Return the peak memory of a call on the GPU."""
    torch.cuda.reset_peak_memory_stats()
    run()
    return float(torch.cuda.max_memory_allocated() / 2**30)


def tsl_seconds(model: Any, batch: Batch, device: str, repeats: int = 20) -> float:
    """What TSL adds to a step: pooling, norms, projections and its loss, there and back; median of the repeats."""
    inputs = batch.ours
    masks, config = (inputs["region_mask"], inputs["sentence_mask"]), model.config
    patches, words = (
        torch.randn(*mask.shape, tower.hidden_size, device=device, requires_grad=True)
        for mask, tower in zip(masks, (config.vision_config, config.text_config), strict=True)
    )
    targets = torch.randn(2, len(masks[0]), config.projection_dim, device=device, requires_grad=True)

    def run() -> None:
        # What the towers give, as `towers_fastgoal` reads it: the class token first, the last layer before the norm.
        vision = SimpleNamespace(last_hidden_state=torch.cat([patches[:, :1], patches], dim=1))
        pooled = pool_patches(model, vision, masks[0]), pool_text(model, words, masks[1])
        losses = [
            token_similarity_loss(embeds, target, mask.bool().any(dim=1))
            for mask, embeds, target in zip(masks, pooled, targets, strict=True)
        ]
        torch.stack(losses).sum().backward()

    run()
    seconds = statistics.median(timed(run, device)[0] for _ in range(repeats))
    model.zero_grad()
    return float(seconds)


def matmul_peak(device: str, dtype: torch.dtype, size: int = 8192) -> float:
    """FLOP/s of a large matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = [timed(lambda: [a @ b for _ in range(10)], device)[0] for _ in range(4)]
    return 10 * 2 * size**3 / float(min(seconds))


def count_flops(model: Any, step: Step, batch: Batch) -> int:
    """Floating point operations of a step's products, forward and backward, counted without computing them."""
    from torch.utils.flop_counter import FlopCounterMode

    meta, batch = copy.deepcopy(model).to("meta"), batch.to("meta")
    # transformers looks into a mask for padding, which a tensor without values cannot answer; the count is the same.
    batch.ours = {name: value for name, value in batch.ours.items() if "attention_mask" not in name}
    with FlopCounterMode(display=False) as counter:
        step(meta, batch).backward()
    return int(counter.get_total_flops())


def count_crop_flops(model: Any) -> int:
    """Floating point operations of the image tower on one image, forward alone: what `fastgoal pairs` does per crop."""
    from torch.utils.flop_counter import FlopCounterMode

    meta, side = copy.deepcopy(model).to("meta"), model.config.vision_config.image_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta.get_image_features(pixel_values=torch.empty(1, 3, side, side, device="meta"))
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
    base, towers = work[OURS], work[FLOOR]
    print("| step | TFLOP | against our step | against the towers |\n|---|---|---|---|")
    for name, value in work.items():
        print(f"| {name} | {value / 1e12:.3f} | {value / base:.3f}x | {value / towers:.4f}x |")


def time_steps(model: Any, steps: dict[str, Step], draw: Callable[[], Batch], args: argparse.Namespace) -> None:
    """Times the steps in interleaved rounds, each on a batch of its own, and prints the table."""
    device, on_gpu = args.device, args.device != "cpu"
    optimizer = idle_optimizer(model)

    def train(name: str, batch: Batch) -> None:
        train_once(model, steps[name], batch, optimizer, device, args.precision == "bf16")

    for name in steps if on_gpu else [OURS]:  # warm up
        for _ in range(3 if on_gpu else 1):
            train(name, draw())
    rounds = Rounds()
    flops: dict[str, list[int]] = {name: [] for name in steps}
    rng = random.Random(0)
    for turn in range(args.rounds):
        batch = draw()
        for name in rng.sample([*steps], len(steps)):
            seconds = timed(lambda name=name, batch=batch: train(name, batch), device)
            rounds.add(name, seconds)
            flops[name].append(count_flops(model, steps[name.removesuffix(", compiled")], batch))
            print(f"round {turn + 1}: {name} {seconds[0]:.2f} s, {seconds[1]:.2f} CPU s", file=sys.stderr, flush=True)

    work = {name: statistics.median(values) for name, values in flops.items()}
    columns = ["step", "seconds", "CPU seconds", "samples/s", "against our step", "against the towers", "TFLOP"]
    columns += ["peak memory", "share of matmul peak"] if on_gpu else []
    peak = matmul_peak(device, torch.bfloat16 if args.precision == "bf16" else torch.float32) if on_gpu else 0.0
    print(f"Medians of {args.rounds} interleaved rounds, of seconds and of each round's ratio of seconds;")
    print("in brackets the same of the CPU seconds:\n")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name in steps:
        wall, cpu = rounds.median(name)
        cells = [name, f"{wall:.3f}", f"{cpu:.3f}", f"{args.batch_size / wall:.2f}"]
        for other in (OURS, FLOOR):
            against = [statistics.median(column) for column in rounds.ratios(name, other).T]
            cells.append(f"{against[0]:.3f}x" + ("" if on_gpu else f" ({against[1]:.3f}x)"))
        cells.append(f"{work[name] / 1e12:.2f} ({work[name] / work[OURS]:.3f}x)")
        if on_gpu:
            cells.append(f"{peak_gib(lambda name=name: train(name, draw())):.1f} GiB")  # type: ignore[misc]
            cells.append(f"{work[name] / wall / peak:.0%}")
        print(f"| {' | '.join(cells)} |")
    own = tsl_seconds(model, draw(), device)
    print(f"\nTSL's own work takes {1000 * own:.1f} ms, {own / rounds.median(OURS)[0]:.2%} of our step.")
    if on_gpu:
        print(f"\nMeasured matmul peak: {peak / 1e12:.0f} TFLOP/s.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(SHAPES), default="b32", help="a shape of OpenAI's CLIPs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", action="store_true", help="count operations and memory, time nothing")
    add_device_option(parser)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast")
    parser.add_argument("--compile", action="store_true", help="also time our step under torch.compile")
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa", help="as transformers names them")
    parser.add_argument("--floor", action="store_true", help="only our step, without TSL, and the towers alone")
    sizes = "our step with crops of these sizes too, without the reference style"
    parser.add_argument("--crop-sizes", type=int, nargs="+", default=[], metavar="PIXELS", help=sizes)
    add_caption_options(parser)
    args = parse(parser)
    # Random weights have gradients whose squares are denormal numbers, with which processors are many times slower; a
    # trained model has none. Threads take this setting from the one that starts them, so it comes first.
    torch.set_flush_denormal(True)
    disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(0)
    rng = random.Random(0)
    device = args.device
    model: Any = build_model(args.model).to(device)
    processor = build_processor(args.tokenizer, args.model)
    captions = read_captions(args.captions, rng)
    if len(captions) < args.batch_size:
        raise ValueError(f"There are {len(captions)} captions; a batch takes {args.batch_size} (--batch-size).")

    def draw() -> Batch:
        taken = rng.sample(captions, args.batch_size)
        return make_batch(processor, [make_row(*caption, rng) for caption in taken]).to(device)

    with tempfile.TemporaryDirectory() as folder:
        steps, trainer = build_steps(model, processor, device, folder, args.crop_sizes)
        few = make_batch(processor, make_rows(captions[:4], rng)).to(device)
        gap = check_equal(model, trainer, few, processor.tokenizer)
        threads = f", {torch.get_num_threads()} threads" if device == "cpu" else f" ({torch.cuda.get_device_name()})"
        print(f"ViT-{args.model.upper()}, batch {args.batch_size}, {args.precision}, {device}{threads}")
        print(f"The reference style's losses equal ours to {gap:.0e}.\n")
        model.train()
        model.set_attn_implementation(args.attention)
        if args.floor:
            steps = {name: steps[name] for name in (OURS, "our step without TSL", FLOOR)}
        if args.crop_sizes:
            steps = {name: steps[name] for name in steps if name not in ("our step without TSL", "reference style")}
        if args.compile:
            compiled = torch.compile(model)
            steps["our step, compiled"] = lambda _, batch: trainer.compute_loss(compiled, dict(batch.ours))
        if args.count:
            report_flops(model, steps, [draw() for _ in range(args.rounds)])
            row = make_row(*max(captions, key=lambda caption: len(caption[0])), rng)
            kept = [kept_bytes(model, steps[OURS], make_batch(processor, [row] * n).to(device)) for n in (1, 3)]
            print(f"\nA pair with a caption of {TOKENS} tokens keeps {(kept[1] - kept[0]) / 2 / 1e6:.0f} MB in bf16.")
            weights, crop = sum(parameter.numel() for parameter in model.parameters()), count_crop_flops(model)
            print(f"A crop's forward is {crop / 1e9:.1f} GFLOP; the model has {weights / 1e6:.0f} M weights.")
        else:
            time_steps(model, steps, draw, args)


if __name__ == "__main__":
    main()
