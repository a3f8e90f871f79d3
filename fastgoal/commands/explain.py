"""`fastgoal explain`: show where one or two models see each sentence of a caption, as a figure or a page."""

import argparse
from pathlib import Path

from .options import add, prepare, prepare_outputs, text_file

HELP = "show where a model sees each sentence of a caption in an image"

EPILOG = """\
Each sentence has one color and one number, the same for both models. The color marks its text, the frame of its best
region and its patch heat map (pale for the least similar patch, full color for the most similar). A striped frame is
the best region of several sentences. The numbers after the sentences are cosine similarities. Compare heat maps by
position, not by strength: each has its own range, which is printed with it.

examples:
  fastgoal explain --model fast-goal --image dog.jpg --output dog.png \\
      --caption "A brown dog. A red ball lies next to it."
  fastgoal explain --model fast-goal --against openai/clip-vit-base-patch16 \\
      --image dog.jpg --caption-file dog.txt --html dog.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--model")
    parser.add_argument("--image", required=True, type=Path, metavar="FILE", help="image file")
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--caption", metavar="TEXT", help="caption of the image")
    text.add_argument(
        "--caption-file", dest="caption", type=text_file, metavar="FILE", help="text file with the caption"
    )
    parser.add_argument(
        "--output", type=Path, metavar="out.png", help="write the figure to this file; required without --html"
    )
    add(parser, "--html", type=Path)
    add(parser, "--against", help="second model to show next to the first")
    parser.add_argument(
        "--detector",
        default="none",
        metavar="DETECTOR",
        help="detector of the regions, as in `fastgoal pairs` (default: none, the five default regions alone)",
    )
    add(parser, "--language", help="language of the caption (default: the language that the model was trained on)")
    add(parser, "--device")


def run(args: argparse.Namespace) -> int:
    prepare_outputs(args)
    caption = args.caption.strip()
    if not caption:
        raise ValueError("`caption` is empty. Give a text with at least one sentence.")
    prepare(args, models=["model", "against"], detectors=["detector"], paths=["image"])

    from fastgoal.hub_cards.wording import count, number
    from fastgoal.pages.explain import explain, explanation_figure, explanation_page
    from fastgoal.pages.render import save_image
    from fastgoal.processing.checkpoints.load import load_model
    from fastgoal.processing.detectors.load import load_detector
    from fastgoal.processing.files import write_text
    from fastgoal.processing.images import load_image
    from fastgoal.processing.texts import shortened

    image = load_image(args.image)
    explanations = []
    for argument, name in (("model", args.model), ("against", args.against)):
        if name is not None:
            model, processor = load_model(name, args.device, argument=argument)
            detector = load_detector(args.detector, device=str(model.device))
            options = {"detector": detector, "language": args.language, "model_name": name}
            explanations.append(explain(model, processor, image, caption, **options))
    for explanation in explanations:
        score = number(explanation.score, 3)
        print(f"{explanation.model_name}: cosine similarity of image and caption {score}, of sentences and regions:")
        for line in explanation.lines:
            note = f"  ({line.note})" if line.note else ""
            print(f"  {line.number}. {number(line.score, 3)}  {line.label:<14} {shortened(line.text, 300)}{note}")
        if explanation.omitted:
            print(f"  and {count(explanation.omitted, 'sentence')} more, not shown")
    if args.output is not None:
        save_image(explanation_figure(explanations), args.output)
        print(f"Figure: {args.output}")
    if args.html is not None:
        write_text(args.html, explanation_page(explanations))
        print(f"Page: {args.html}")
    return 0
