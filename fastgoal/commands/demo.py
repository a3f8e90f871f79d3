"""`fastgoal demo`: a page in the browser to try a model on."""

import argparse

from .options import add, number

HELP = "try one or two models in the browser: explain an image, search a folder"

EPILOG = """\
The page is for this machine alone, unless --host says otherwise; what is uploaded stays here, and nothing is reported
to anybody. With --images there is a search of that folder. Needs `pip install 'fastgoal[demo]'`, and for --images
`pip install 'fastgoal[search]'`.

example:
  fastgoal demo --model outputs/ --images photos/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--model")
    add(parser, "--against", help="show this checkpoint next to the model")
    parser.add_argument("--images", metavar="DIR", help="folder to search")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="whom to listen to; 0.0.0.0: everybody")
    parser.add_argument(
        "--port", type=number(1, 65535), metavar="N", help="port (default: the first free one from 7860)"
    )
    add(parser, "--device")


def run(args: argparse.Namespace) -> int:
    from fastgoal.demo.app import build_demo, launch_demo, load_models, require_gradio
    from fastgoal.hub_cards.wording import count

    require_gradio()
    names = [name for name in (args.model, args.against) if name is not None]
    models = load_models(names, args.images, args.device)
    for model in models:
        if model.update is not None:
            print(
                f"{model.name}: {count(model.update.images, 'image')} to search, {model.update.encoded:,} embedded now"
            )
    launch_demo(build_demo(models), args.host, args.port)
    return 0
