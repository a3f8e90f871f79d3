"""`fastgoal explain`: a picture or page of where each sentence of a caption is in an image, by one or two models."""

import argparse
from pathlib import Path

from .options import add, load_contestants, prepare_pictures, text_file

HELP = "show where a model sees each sentence of a caption in an image"

EPILOG = """\
Each sentence has one color and one number, the same for both models: of its text, of the frame of its best region, and
of its patch heat map (pale: least similar patch, full color: most similar). A striped frame is the best region of
several sentences. Numbers after the sentences are cosines. Compare heat maps by place, not by strength: each has its
own range, which is printed with it.

examples:
  fastgoal explain --model outputs/ --image dog.jpg --output dog.png \\
      --caption "A brown dog. A red ball lies beside it."
  fastgoal explain --model outputs/ --against openai/clip-vit-base-patch16 \\
      --image dog.jpg --caption-file dog.txt --html dog.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--model")
    parser.add_argument("--image", required=True, type=Path, metavar="FILE", help="image file")
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--caption", metavar="TEXT", help="the caption")
    text.add_argument("--caption-file", dest="caption", type=text_file, metavar="FILE", help="file with the caption")
    parser.add_argument("--output", type=Path, metavar="out.png", help="write a picture here")
    add(parser, "--html", type=Path)
    add(parser, "--against", help="show this checkpoint next to the model")
    parser.add_argument("--detector", default="none", metavar="D", help="proposes regions, as for `fastgoal pairs`")
    add(parser, "--language", help="of the caption (default: that of the captions which the model was trained on)")
    add(parser, "--device")


def run(args: argparse.Namespace) -> int:
    prepare_pictures(args)
    caption = args.caption.strip()
    if not caption:
        raise ValueError("the caption is empty; give a text with at least one sentence.")

    from fastgoal.hub_cards.wording import count, number
    from fastgoal.pages.explain import explain, explanation_figure, explanation_page
    from fastgoal.pages.render import save_image
    from fastgoal.processing.detectors.load import load_detector
    from fastgoal.processing.files import write_text
    from fastgoal.processing.images import load_image
    from fastgoal.processing.texts import shortened

    image = load_image(args.image)
    explanations = []
    for name, model, processor in load_contestants(args):
        detector = load_detector(args.detector, device=str(model.device))
        options = {"detector": detector, "language": args.language, "model_name": name}
        explanations.append(explain(model, processor, image, caption, **options))
    for explanation in explanations:
        print(f"{explanation.model_name}: image and caption {number(explanation.score, 3)}")
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
