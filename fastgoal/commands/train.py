"""`fastgoal train`: the same program as `accelerate launch trainer/run.py`.

The options are the fields of the training arguments, hundreds with those of transformers, so what follows the command's
name is passed on as it is, `--help` included.
"""

import argparse

HELP = "fine-tune a CLIP on the pairs that `fastgoal pairs` wrote"

USAGE = """\
usage: fastgoal train CONFIG.yaml
       fastgoal train --OPTION VALUE ...

Fine-tunes a CLIP with the FAST-GOAL losses on the dataset that `fastgoal
pairs` wrote. The options come from one YAML file, from flags, or from a file
and flags that overrule it. On several devices, start the same program with
`accelerate launch trainer/run.py CONFIG.yaml`.

The complete list of options follows; it takes a few seconds, because it is
read from the training arguments.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def pass_on(arguments: list[str], namespace: object) -> tuple[argparse.Namespace, list[str]]:
        rest = [argument for argument in arguments if argument != "--traceback"]
        shown = {} if rest == arguments else {"traceback": True}
        return argparse.Namespace(run=run, arguments=rest, **shown), []

    parser.parse_known_args = pass_on  # type: ignore[method-assign, assignment]


def run(args: argparse.Namespace) -> int:
    arguments: list[str] = args.arguments
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(USAGE, flush=True)
        arguments = ["--help"]

    from fastgoal.trainer.run import main, run_parser

    args.parser = run_parser("fastgoal train")
    return main(arguments, args.parser)
