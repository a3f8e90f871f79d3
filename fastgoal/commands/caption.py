"""`fastgoal caption`: long captions for a folder of images, written by an image-text-to-text model."""

import argparse
import os
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from .options import add, number, text_file

HELP = "write long captions for images with an image-text-to-text model"

EPILOG = """\
IMAGES is one of
  a folder of images, sub-folders included (jpg, png, webp, bmp, gif, tif)
  a folder with metadata.jsonl, a folder written by datasets' save_to_disk,
  a folder of parquet files, or OWNER/NAME of a dataset on the Hugging Face
  Hub; captions that are there already are not looked at

The output is a folder with metadata.jsonl ("file_name", "caption", "finish") and the images, as hard links to the
originals where the disk allows it, else as copies: what `fastgoal pairs DIR` and datasets' "imagefolder" read.
metadata.jsonl appears when all images are done. A run that was interrupted continues where it stopped when the same
command is given again; --batch-size and --device may be others then.

A caption that reaches --max-new-tokens is cut back to its last whole sentence, and its "finish" is "length", else
"stop". CLIP reads 248 tokens once stretched, some 180 words; fastgoal's prompt asks for about 150 words.

The first caption is shown as soon as it is there; --limit 5 with another --output tries a model or a prompt out.

examples:
  fastgoal caption photographs/ --output captions/ \\
      --model HuggingFaceTB/SmolVLM2-2.2B-Instruct
  vllm serve Qwen/Qwen2.5-VL-7B-Instruct &
  fastgoal caption photographs/ --output captions/ \\
      --server http://localhost:8000 --model Qwen/Qwen2.5-VL-7B-Instruct
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGES", help="what to write captions for, see below")
    add(parser, "--output", help="folder for captions and images, new or to be continued")
    add(
        parser,
        "--model",
        metavar="MODEL",
        help="image-text-to-text checkpoint of transformers: a folder or a Hub id; with --server its name there",
    )
    parser.add_argument(
        "--server",
        metavar="URL",
        help="have this server write, which speaks OpenAI's chat completions (vLLM, SGLang, llama.cpp, Inference "
        "Providers); images are sent at most 2,048 pixels long, without what their files say of place and camera",
    )
    parser.add_argument(
        "--api-key-env",
        metavar="NAME",
        help="environment variable with the server's key (default: no key is sent, not even that of the Hub)",
    )
    parser.add_argument(
        "--timeout",
        type=number(0.001, kind=float),
        default=300.0,
        metavar="SECONDS",
        help="ask the server again when an answer takes longer",
    )
    parser.add_argument(
        "--prompt-file",
        type=text_file,
        metavar="FILE",
        help="text that asks for the caption, in place of fastgoal's, which asks for everything that is visible and "
        "nothing else",
    )
    parser.add_argument("--max-new-tokens", type=number(1), default=512, metavar="N", help="longest caption")
    parser.add_argument(
        "--temperature",
        type=number(0, kind=float),
        default=0.0,
        metavar="T",
        help="0 takes the likeliest token each time, more samples",
    )
    parser.add_argument(
        "--top-p",
        type=number(0, 1, float),
        default=1.0,
        metavar="P",
        help="sample from the likeliest tokens, up to this probability",
    )
    add(parser, "--seed", help="of the sampling")
    add(parser, "--split", "--image-column", "--allow-outside-files")
    add(parser, "--limit", help="only the first N images")
    add(parser, "--on-error", help="at an image that cannot be read or gets no caption: stop, or skip and list it")
    add(
        parser,
        "--batch-size",
        default=None,
        help="images described at once (default: 8, with --server 32 requests)",
    )
    add(parser, "--workers", "--ray", "--device")
    add(
        parser,
        "--dtype",
        default="auto",
        help="float32, float16, bfloat16, or auto: bfloat16 on a GPU that has it, else float16 there, else float32",
    )


def run(args: argparse.Namespace) -> int:
    check_places(args.images, args.output)
    check_server(args)

    from tqdm.auto import tqdm

    from fastgoal.processing.builders.caption_server import ServerCaptioner
    from fastgoal.processing.builders.captioner import PROMPT, Captioner
    from fastgoal.processing.builders.captions import CaptionSettings, build_captions
    from fastgoal.processing.builders.cluster import open_engine
    from fastgoal.processing.checkpoints.devices import choose_dtype
    from fastgoal.processing.checkpoints.fingerprints import checkpoint_fingerprint
    from fastgoal.processing.data.image_folder import open_images

    ways = {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature, "top_p": args.top_p}
    images = open_images(args.images, args.image_column, args.split, args.allow_outside_files)
    model, prompt = args.model, args.prompt_file or PROMPT
    batch_size = args.batch_size or (32 if args.server else 8)
    with ExitStack() as open_ones:
        engine = open_ones.enter_context(open_engine(args.workers, args.ray))
        if args.server is None:
            device = engine.choose_device(args.device)
            dtype = choose_dtype(args.dtype, device, bfloat16=True)
            mark, sampled_batch = checkpoint_fingerprint(model), batch_size if args.temperature > 0 else None

            def load() -> Any:
                return Captioner.load(model, device, dtype, prompt=prompt, **ways)
        else:
            # Another address of the same model continues the folder.
            mark, dtype, sampled_batch = model, "the server's", None
            asked = {"at_once": batch_size, "api_key": read_key(args), "timeout": args.timeout}

            def load() -> Any:
                captioner = ServerCaptioner(args.server, model, prompt, **ways, **asked)
                return open_ones.enter_context(closing(captioner))

        settings = CaptionSettings(
            model=mark,
            prompt=prompt,
            **ways,
            seed=args.seed,
            dtype=dtype,
            split=args.split,
            limit=args.limit,
            sampled_batch=sampled_batch,
        )
        summary = build_captions(
            images,
            args.output,
            settings,
            load,
            on_error=args.on_error,
            batch_size=batch_size,
            show=lambda name, caption: tqdm.write(f"first caption ({name}):\n{caption}\n"),
            engine=engine,
        )
    print(describe(summary, args.output, args.max_new_tokens))
    return 0


def check_server(args: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if args.server is None and args.api_key_env is not None:
        raise ValueError("--api-key-env is for --server, which is not given.")
    if args.server is not None and (args.workers, args.ray) != (None, None):
        raise ValueError("--server needs no --workers and no --ray: this process asks, --batch-size images at once.")
    if args.server is not None and (args.device, args.dtype) != ("auto", "auto"):
        raise ValueError("--device and --dtype are for a model that runs here; with --server leave them out.")


def read_key(args: argparse.Namespace) -> str | None:
    """The server's key, if one is named."""
    if args.api_key_env is None:
        return None
    key = os.environ.get(args.api_key_env, "").strip()
    if not key:
        raise ValueError(f"--api-key-env {args.api_key_env}: there is no such environment variable, or it is empty.")
    return key


def check_places(images: str, output: str) -> None:
    """Refuse an output inside the folder of images: the next run would take what lies there for new images."""
    if Path(images).is_dir() and Path(os.path.realpath(output)).is_relative_to(os.path.realpath(images)):
        raise ValueError(
            f"output='{output}' lies inside the folder of images '{images}'; choose a place outside of it."
        )


def describe(summary: dict[str, Any], output: str, limit: int) -> str:
    """The summary as a few lines to read."""
    images, cut, made = summary["images"], summary["cut"], summary["made"]
    lines = [
        f"{images:,} images, {len(summary['skipped'])} skipped, {summary['words']:.1f} words and "
        f"{summary['sentences']:.1f} sentences a caption",
        f"{cut:,} captions ({cut / images:.1%}) reached the limit of {limit} tokens"
        + (" and were cut back to their last whole sentence" if cut else ""),
        f"{summary['seconds']:.1f} s, {summary['images_per_second']:.2f} images/s",
        f"{output}: {f'{made:,} images done now' if made else 'all there already'}; next: fastgoal pairs {output}",
    ]
    if summary["skipped"]:
        lines += ["skipped:", *(f"  {entry['reason']}" for entry in summary["skipped"])]
    return "\n".join(lines)
