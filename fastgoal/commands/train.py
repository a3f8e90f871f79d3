"""`fastgoal train`: fine-tune a model; the same program as `trainer/run.py`.

The options are the fields of the training arguments, hundreds with those of transformers, so all arguments, including
`--help`, are passed on unparsed.
"""

import argparse

HELP = "fine-tune a model on the pairs that `fastgoal pairs` wrote"

USAGE = """\
usage: fastgoal train CONFIG.yaml [options]
       fastgoal train --model MODEL --train_data DATA --output_dir DIR [options]

Fine-tunes a model with the FAST-GOAL losses on the dataset that `fastgoal
pairs` wrote. Settings come from a YAML file, from options, or from both;
options override the file. `fastgoal config` prints a commented file.

Several GPUs:          fastgoal train CONFIG.yaml --num_processes 4
Several CPU processes: fastgoal train CONFIG.yaml --num_processes 4 --use_cpu

`accelerate launch -m fastgoal.trainer.run CONFIG.yaml` is the same program for
your own launcher.

The complete list of options follows in a few seconds.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def pass_on(arguments: list[str], namespace: object) -> tuple[argparse.Namespace, list[str]]:
        rest = [argument for argument in arguments if argument != "--traceback"]
        given = {} if rest == arguments else {"traceback": True}
        return argparse.Namespace(run=run, arguments=rest, **given), []

    parser.parse_known_args = pass_on  # type: ignore[method-assign, assignment]


def run(args: argparse.Namespace) -> int:
    arguments: list[str] = args.arguments
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(USAGE, flush=True)
        arguments = ["--help"]

    from fastgoal.trainer.run import main, run_parser

    args.parser = run_parser("fastgoal train")
    return main(arguments, args.parser)
