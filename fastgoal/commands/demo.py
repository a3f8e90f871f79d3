"""`fastgoal demo`: try one or two models in the browser."""

import argparse

from .options import add, number, prepare

HELP = "try one or two models in the browser: explain an image, search a folder"

EPILOG = """\
Only this machine can open the page, unless --host names another address. Uploaded images stay on this machine, and no
usage data is sent. With --images, the page searches that folder by a description or an image, and explains what it
found. Other programs can call the endpoints /explain and /search with gradio_client. Requires
`pip install 'fastgoal[demo]'`, and `pip install 'fastgoal[search]'` for --images.

example:
  fastgoal demo --model fast-goal --images photographs/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--model")
    add(parser, "--against", help="second model to show next to the first")
    parser.add_argument(
        "--images", metavar="DIR", help="folder of images to search, including its subfolders (default: no search)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to bind to; 0.0.0.0 for all interfaces"
    )
    parser.add_argument(
        "--port", type=number(1, 65535), metavar="N", help="port (default: the first free port from 7860 on)"
    )
    add(parser, "--device")


def run(args: argparse.Namespace) -> int:
    prepare(args, models=["model", "against"], paths=["images"])

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
