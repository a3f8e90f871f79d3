"""Run the campaign: `make campaign`, or `python -m tests.campaign [--area NAME] [--only TEXT] [--table FILE]`."""

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", YOLO_OFFLINE="true", OMP_NUM_THREADS="1")
os.environ.update(TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--area", help="of this area only")
    parser.add_argument("--only", default="", help="cases whose names hold this text")
    parser.add_argument("--table", type=Path, help="write the table into this file, between its two marks")
    parser.add_argument("--verbose", action="store_true", help="the whole output of cases that went wrong")
    args = parser.parse_args()

    from .harness import RESULTS, Kit, run_case
    from .run import all_cases, table, warm_up

    wanted = [case for case in all_cases() if args.area in (None, case.area) and args.only in case.name]
    warm_up()
    tried: dict[str, Counter[str]] = {}
    wrong = []
    with tempfile.TemporaryDirectory() as place:
        kit = Kit.make(Path(place))
        for case in wanted:
            outcome = run_case(case, kit, Path(place) / "cases")
            counts = tried.setdefault(case.area, Counter(dict.fromkeys(RESULTS, 0)))
            counts[outcome.result] += 1
            counts["wrong"] += not outcome.right
            if not outcome.right:
                wrong.append(outcome)
                sys.stdout.write(f"WRONG  {case.area} | {case.name} | {outcome.result} | {outcome.why}\n")
                if args.verbose:
                    sys.stdout.write(outcome.output + "\n")
                sys.stdout.flush()
    made = table(tried)
    sys.stdout.write(f"\n{made}\n{len(wanted)} tried, {len(wrong)} wrong.\n")
    if args.table is not None:
        before, mark, rest = args.table.read_text(encoding="utf-8").partition("<!-- table -->\n")
        after = rest.partition("<!-- end -->")[2]
        args.table.write_text(f"{before}{mark}{made}<!-- end -->{after}", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
