"""The report of `fastgoal evaluate` as tables, for a terminal and as Markdown."""

from typing import Any

DIRECTIONS = (("text_to_image", "text to image"), ("image_to_text", "image to text"))
Table = tuple[str, list[str], list[list[str]]]


def tables(report: dict[str, Any]) -> list[Table]:
    """The report's numbers as tables of (title, head, rows)."""
    made = [_recall_table(report)]
    if "published" in report:
        rows = [
            [
                f"{row['model']} (published, {row['source']})",
                f"{row['text_to_image']:.2f}",
                f"{row['image_to_text']:.2f}",
            ]
            for row in report["published"]
        ]
        ours = [f"{100 * report['metrics'][f'{way}_R@1']:.2f}" for way, _ in DIRECTIONS]
        made.append(
            (
                f"R@1 beside published results of {report['protocol_title']}, in percent",
                ["", *(name for _, name in DIRECTIONS)],
                [[f"{report['model']} (measured here)", *ours], *rows],
            )
        )
    if "differences" in report:
        made.append(_difference_table(report))
    measured = [("this model", report)]
    if "against" in report:
        measured.append(("the other model", report["against"]))
    if "joint" in report:
        keys = list(report["joint"])
        made.append(
            (
                "Joint test: global and local pairs in one gallery, in percent",
                ["", *(name for name, _ in measured)],
                [[_joint_name(key), *(f"{100 * which['joint'][key]:.2f}" for _, which in measured)] for key in keys],
            )
        )
    if "robustness" in report:
        rows = []
        for how, change in report["robustness"].items():
            drops = [f"{100 * which['robustness'][how]['drop']:.2f}" for _, which in measured]
            rows.append([change["what"], f"{change['changed']:,}", *drops])
        for name, drop in report["published_false_sentence_drop"].items():
            rows.append([f"{name}, one false sentence (published, on other data)", "", f"{drop:.2f}"])
        made.append(
            (
                "Drop of R@1 with changed captions, mean of both directions, in points",
                ["", "captions changed", *(name for name, _ in measured)],
                rows,
            )
        )
    if "localisation" in report:
        found = report["localisation"]
        tops = list(found["hit_rate"])
        rows = [
            [name, *(f"{100 * which['localisation']['hit_rate'][k]:.2f}" for k in tops)] for name, which in measured
        ]
        rows.append(["patches in random order", *(f"{100 * found['chance'][k]:.2f}" for k in tops)])
        for name, values in report["published_localisation"].items():
            rows.append([f"{name} (published, on other data)", *(f"{value:.2f}" for value in values)])
        made.append(
            (
                f"Sentences that find their boxes among the first k of {found['patches']} patches, in percent;"
                f" {found['sentences']:,} sentences, {found['outside']:,} more outside of the crop",
                ["", *(f"top {k}" for k in tops)],
                rows,
            )
        )
    return [(title, head, [row + [""] * (len(head) - len(row)) for row in rows]) for title, head, rows in made]


def _recall_table(report: dict[str, Any]) -> Table:
    metrics, intervals = report["metrics"], report.get("intervals", {})
    rows = []
    for name in (*(f"R@{k}" for k in report["ks"]), "mean_rank", "median_rank"):
        row = [name.replace("_", " ")]
        for way, _ in DIRECTIONS:
            key, percent = f"{way}_{name}", name.startswith("R@")
            if key not in metrics:
                row.append("-")
                continue
            scale, digits = (100, 2) if percent else (1, 1)
            cell = f"{scale * metrics[key]:.{digits}f}" + (" %" if percent else "")
            if key in intervals:
                low, high = (scale * value for value in intervals[key])
                cell += f"  ({low:.{digits}f} to {high:.{digits}f})"
            row.append(cell)
        rows.append(row)
    title = "Retrieval" + (f", 95 % intervals of {report['resamples']:,} resamples" if intervals else "")
    return title, ["", *(name for _, name in DIRECTIONS)], rows


def _difference_table(report: dict[str, Any]) -> Table:
    rows = []
    for key, value in report["differences"].items():
        way, name = next((label, key[len(way) + 1 :]) for way, label in DIRECTIONS if key.startswith(way))
        percent = name.startswith("R@")
        scale, digits = (100, 2) if percent else (1, 1)
        interval = "-"
        if value["interval"] is not None:
            low, high = (scale * bound for bound in value["interval"])
            interval = f"{low:+.{digits}f} to {high:+.{digits}f}"
        rows.append(
            [
                f"{name.replace('_', ' ')}, {way}",
                f"{scale * report['metrics'][key]:.{digits}f}",
                f"{scale * report['against']['metrics'][key]:.{digits}f}",
                f"{scale * value['difference']:+.{digits}f}",
                interval,
                {True: "yes", False: "no", None: "-"}[value["certain"]],
                f"{value['only_ours']:,} / {value['only_theirs']:,}" if percent else "",
            ]
        )
    head = ["", "this model", "the other", "difference", "95 % interval", "differs", "found by this / other only"]
    return f"Against {report['against']['model']}, on the same queries", head, rows


def _joint_name(key: str) -> str:
    way = next(label for name, label in DIRECTIONS if name in key)
    own = ", own counterpart only" if "_own_" in key else ", own picture's pairs"
    return f"mAP@{key.split('@')[1]}, {way}{own}"


def facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What the numbers depend on."""
    cut = f"{report['truncated_captions']:,} ({report['truncated_share']:.1%})"
    lines = [
        ("model", str(report["model"])),
        ("protocol", f"{report['protocol_title']} ({report['protocol']})"),
        ("data", f"{report['data']}" + (f", split {report['split']}" if report["split"] else "")),
        ("images", f"{report['images']:,}"),
        ("captions", f"{report['captions']:,}, of which {cut} were cut at {report['max_text_length']} tokens"),
    ]
    if report["duplicate_captions"]:
        lines.append(
            ("repeated", f"{report['duplicate_captions']:,} captions occur before; equal ones tie, against us")
        )
    if report["remark"]:
        lines.append(("note", report["remark"]))
    lines.append(
        (
            "time",
            f"{report['seconds']:.1f} s on {report['device']}, {report['images'] / report['seconds']:.1f} images/s",
        )
    )
    return lines


def as_text(report: dict[str, Any]) -> str:
    """The report for a terminal."""
    lines = [f"{name:<10}{value}" for name, value in facts(report)]
    for title, head, rows in tables(report):
        widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
        lines += ["", title]
        for row in [head, *rows]:
            cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
            lines.append("  ".join(cells).rstrip())
    if report["skipped"]:
        lines += ["", f"{len(report['skipped']):,} rows were left out:"]
        lines += [f"  {message}" for message in report["skipped"]]
    return "\n".join(lines)


def as_markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [f"# {report['model']} on {report['protocol_title']}", ""]
    lines += [f"- {name}: {value}" for name, value in facts(report)]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines += [f"- {report['dtype']}, seed {report['seed']}; {versions}"]
    for title, head, rows in tables(report):
        lines += ["", f"## {title}", "", _line(head), _line(["---", *("--:" for _ in head[1:])])]
        lines += [_line(row) for row in rows]
    if report["skipped"]:
        lines += ["", f"## {len(report['skipped']):,} rows were left out", ""]
        lines += [f"- {message}" for message in report["skipped"]]
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
