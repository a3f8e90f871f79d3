"""One module per sub-command of `fastgoal`.

Each has `HELP` (one line), `add_arguments(parser)` and `run(args) -> int`, the exit code. A module imports nothing
heavy before `run`, so that every `--help` is instant.
"""
