"""Another process that holds a folder."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held_by_another(work: Path) -> Iterator[int]:
    """A process that holds the folder whose lock lies in `work`, killed at the end of the block; its number."""
    code = (
        "from pathlib import Path; from fastgoal.processing.files import hold_folder\n"
        f"with hold_folder(Path({str(work)!r})):\n    print('mine', flush=True); input()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, env=environment, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()
