"""One module per sub-command of `fastgoal`.

Each has `HELP` (one line), `EPILOG` (examples; paragraphs are filled, indented lines stay as they are),
`add_arguments(parser)` and `run(args) -> int`, the exit code. Options that several commands have come from `options`.
A module imports nothing heavy before `run`, so that every `--help` is instant.
"""
