"""`fastgoal train`: the same program as `accelerate launch trainer/run.py`.

The options are the fields of the training arguments, hundreds with those of transformers, so this command passes what
follows its name on as it is and declares none of its own.
"""

import argparse
import sys

HELP = "fine-tune a CLIP on the pairs that `fastgoal pairs` wrote"

USAGE = """\
usage: fastgoal train CONFIG.yaml
       fastgoal train --OPTION VALUE ...

Fine-tunes a CLIP with the FAST-GOAL losses on the data set that `fastgoal
pairs` wrote. The options come from one YAML file, from flags, or from a file
and flags that overrule it. On several devices, start the same program with
`accelerate launch trainer/run.py CONFIG.yaml`.

The complete list of options follows; it takes a few seconds, because it is
read from the training arguments.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="a YAML file, flags, or both")


def run(args: argparse.Namespace) -> int:
    arguments: list[str] = args.arguments
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(USAGE, flush=True)
        arguments = ["--help"]
    # argparse takes the program's name in usage and error messages from here.
    sys.argv = ["fastgoal train", *arguments]

    from fastgoal.trainer.run import main

    return int(main(arguments) or 0)
