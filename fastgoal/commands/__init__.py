"""One module per sub-command of `fastgoal`.

Each module has `HELP` (one line), `EPILOG` (paragraphs are wrapped, indented lines are kept), `add_arguments(parser)`
and `run(args)`, which calls one library function, prints its result and returns the exit code. `options` declares the
options of several commands. A module imports nothing heavy before `run`, so that every `--help` is instant.
"""
