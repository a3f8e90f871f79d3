"""`fastgoal caption`: long captions for a folder of images, written by an image-text-to-text model."""

import argparse
from inspect import signature
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
    from tqdm.auto import tqdm

    from fastgoal.processing.builders.captions import build_captions

    options = {name: value for name, value in vars(args).items() if name in signature(build_captions).parameters}
    if args.prompt_file is not None:
        options["prompt"] = args.prompt_file
    summary = build_captions(**options, show=lambda name, caption: tqdm.write(f"first caption ({name}):\n{caption}\n"))
    print(describe(summary, args.output, args.max_new_tokens))
    return 0


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
