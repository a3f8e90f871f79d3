"""`python -m fastgoal` is the `fastgoal` command."""

import sys

from fastgoal.cli import main

if __name__ == "__main__":
    sys.exit(main())
