"""Run mypy on the package from the source tree.

`fastgoal.processing` lies in `processing/` and so on (`package_dir` in setup.cfg), which mypy cannot know. So the
package is put together from links, checked there, and the messages are given the real paths.
"""

import configparser
import re
import shutil
import sys
from pathlib import Path

from mypy import api

ROOT = Path(__file__).resolve().parent.parent
# Not below build/: there `python -m build` would find it in place of the package of that name.
TREE = ROOT / ".mypy_cache" / "tree"


def main() -> int:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["options"]["package_dir"].strip().splitlines()
    folders = dict(re.split(r"\s*=\s*", line.strip()) for line in lines)

    shutil.rmtree(TREE, ignore_errors=True)
    for package, folder in sorted(folders.items()):  # a package comes before those inside it
        place = TREE / package.replace(".", "/")
        place.mkdir(parents=True)
        for path in (ROOT / folder).iterdir():
            (place / path.name).symlink_to(path)

    cache = ROOT / ".mypy_cache"
    output, errors, code = api.run(
        ["--config-file", str(ROOT / "setup.cfg"), "--cache-dir", str(cache), str(TREE / "fastgoal"), *sys.argv[1:]]
    )
    for package, folder in sorted(folders.items(), reverse=True):
        place = TREE / package.replace(".", "/")
        for prefix in (f"{place}/", f"{place.relative_to(ROOT)}/"):
            output = output.replace(prefix, f"{folder}/")
    sys.stdout.write(output)
    sys.stderr.write(errors)
    return code


if __name__ == "__main__":
    sys.exit(main())
