"""`fastgoal push-space`: send the demo to the Hub as a Space."""

import argparse

from .options import add, call, prepare

HELP = "send the demo of one or two models to the Hugging Face Hub as a Space"

EPILOG = """\
Sends the app and a copy of the fastgoal package (about 1 MB) and, with --images, small copies of the images without
metadata. The Space loads the models from the Hub. The access token is the one of `hf auth login` or HF_TOKEN.
Requires `pip install 'fastgoal[demo]'`.

example:
  fastgoal push-space OWNER/fast-goal-demo --model OWNER/fast-goal
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "repo")
    add(parser, "--model", help="model to show, a Hub id")
    add(parser, "--against", help="second model to show next to the first, a Hub id")
    parser.add_argument(
        "--images", metavar="DIR", help="folder of images to search, including its subfolders, 500 images at most"
    )
    add(parser, "--dry-run", "--private", "--message")


def run(args: argparse.Namespace) -> int:
    from fastgoal.hub_cards.access import check_space_models

    models = [name for name in (args.model, args.against) if name is not None]
    check_space_models(models)
    prepare(args, paths=["images"])

    from fastgoal.demo.app import require_gradio
    from fastgoal.hub_cards.push import describe_push
    from fastgoal.hub_cards.spaces import push_space

    require_gradio()
    print(describe_push(call(push_space, args, models=models)))
    return 0
