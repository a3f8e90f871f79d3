"""`fastgoal caption`: write long captions for images with an image-text-to-text model."""

import argparse
from typing import Any

from .options import FORM_LIST, add, call, number, prepare, text_file

HELP = "write long captions for images with an image-text-to-text model"

EPILOG = f"""\
IMAGES is a folder of images with its subfolders (jpg, png, webp, bmp, gif, tif), or data in one of these forms, which
--form names; captions in the data are ignored:
{FORM_LIST}

The output is a folder with metadata.jsonl ("file_name", "caption", "finish") and the images, as hard links if possible
and otherwise as copies. `fastgoal pairs DIR` and the "imagefolder" of datasets read it. metadata.jsonl is written when
all images are done. The same command continues an interrupted run where it stopped, also with another --batch-size or
--device.

A caption that reaches --max-new-tokens is truncated after its last complete sentence and gets the finish "length";
other captions get "stop". A stretched CLIP model reads 248 tokens, about 180 words. The default prompt asks for about
150 words. Markdown in an answer (headings, lists, bold text, code fences) becomes plain sentences; the summary counts
such captions.

The first caption is shown as soon as it is written. To try a model or a prompt, use --limit 5 and another --output.

examples:
  fastgoal caption photographs/ --output captions/ \\
      --model HuggingFaceTB/SmolVLM2-2.2B-Instruct
  vllm serve Qwen/Qwen2.5-VL-7B-Instruct &
  fastgoal caption photographs/ --output captions/ \\
      --server http://localhost:8000 --model Qwen/Qwen2.5-VL-7B-Instruct
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGES", help="images to write captions for, see below")
    add(parser, "--output")
    add(
        parser,
        "--model",
        help="image-text-to-text model of transformers: a folder or a Hub id; with --server the model's name there",
    )
    parser.add_argument(
        "--server",
        metavar="URL",
        help="address of a server with OpenAI's chat completions API (vLLM, SGLang, llama.cpp, Inference Providers); "
        "images are sent with at most 2,048 pixels per side and without their metadata",
    )
    parser.add_argument(
        "--api-key-env",
        metavar="NAME",
        help="environment variable with the API key of the server (default: no key is sent)",
    )
    parser.add_argument(
        "--timeout",
        type=number(0.001, kind=float),
        default=300.0,
        metavar="SECONDS",
        help="with --server: send a request again if its whole answer takes longer",
    )
    parser.add_argument(
        "--prompt-file",
        type=text_file,
        metavar="FILE",
        help="text file with the prompt (default: a prompt that asks for everything visible and nothing else)",
    )
    parser.add_argument(
        "--max-new-tokens", type=number(1), default=512, metavar="N", help="maximum length of a caption in tokens"
    )
    parser.add_argument(
        "--temperature",
        type=number(0, kind=float),
        default=0.0,
        metavar="T",
        help="sampling temperature; 0 for greedy decoding",
    )
    parser.add_argument(
        "--top-p",
        type=number(0, 1, float),
        default=1.0,
        metavar="P",
        help="sample from the most likely tokens with this total probability",
    )
    add(parser, "--seed", help="random seed of the sampling")
    add(parser, "--form", "--split", "--image-column", "--image-folder", "--allow-outside-files")
    add(parser, "--limit", help="use only the first N images")
    add(parser, "--on-error", help="if an image cannot be read or gets no caption: stop, or skip it and list it")
    add(
        parser,
        "--batch-size",
        default=None,
        help="images per forward pass (default: 8), or with --server concurrent requests (default: 32)",
    )
    add(parser, "--workers", "--ray", "--device")
    add(
        parser,
        "--dtype",
        default="auto",
        help="data type of the model: float32, float16, bfloat16, or auto: bfloat16 or float16 on a GPU, else float32",
    )


def run(args: argparse.Namespace) -> int:
    prepare(args, data=["images"], models=["model"] if args.server is None else [])

    from tqdm.auto import tqdm

    from fastgoal.processing.builders.captions import build_captions

    more = {} if args.prompt_file is None else {"prompt": args.prompt_file}
    summary = call(
        build_captions, args, **more, show=lambda name, caption: tqdm.write(f"first caption ({name}):\n{caption}\n")
    )
    print(describe(summary, args.output, args.max_new_tokens))
    return 0


def describe(summary: dict[str, Any], output: str, limit: int) -> str:
    """Return a summary of `build_captions` as lines of text."""
    from fastgoal.hub_cards.wording import count

    images, cut, made = summary["images"], summary["cut"], summary["made"]
    done = f"{count(made, 'image')} done now" if made else "all complete already"
    lines = [
        f"{count(images, 'image')}, {len(summary['skipped'])} skipped, {summary['words']:.1f} words and "
        f"{summary['sentences']:.1f} sentences per caption",
        f"{count(cut, 'caption')} ({100 * cut / images:.1f} %) reached the limit of {limit} tokens"
        + (" and " + ("was" if cut == 1 else "were") + " truncated after their last complete sentence" if cut else ""),
        *([f"Markdown was removed from {count(summary['markdown'], 'caption')}"] if summary["markdown"] else ()),
        f"{summary['seconds']:.1f} s, {summary['images_per_second']:.2f} images/s",
        f"{output}: {done}; next: fastgoal pairs {output}",
    ]
    if summary["skipped"]:
        lines += ["skipped:", *(f"  {entry['reason']}" for entry in summary["skipped"])]
    return "\n".join(lines)
