"""Run the `fastgoal` command as `python -m fastgoal`."""

import sys

from fastgoal.cli import main

if __name__ == "__main__":
    sys.exit(main())
