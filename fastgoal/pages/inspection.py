"""The page of `fastgoal inspect`: one HTML file that needs no other and asks the network for nothing."""

import html
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from fastgoal.hub_cards.cards import public_name
from fastgoal.hub_cards.pictures import row_frames
from fastgoal.pages.charts import STYLE as CHART_STYLE
from fastgoal.pages.charts import Series, histogram_chart
from fastgoal.pages.page_style import SCRIPT, framed_picture, page
from fastgoal.processing.data.figures import DEFAULT, TOKEN_LIMITS
from fastgoal.processing.images import load_image

SHOWN_SKIPPED = 50
_CUT = "a CLIP of {} tokens stops to read here"


class _Numbers:
    """Counts the page's figures and tables."""

    def __init__(self) -> None:
        self.figures = self.tables = 0

    def figure(self, content: str, caption: str, kind: str = "") -> str:
        self.figures += 1
        opening = f'<figure class="{kind}">' if kind else "<figure>"
        return f"{opening}{content}<figcaption><b>Figure {self.figures}.</b> {caption}</figcaption></figure>"

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, kind: str = "") -> str:
        self.tables += 1
        top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
        return (
            f'<div class="wide"><table class="{kind}"><caption><b>Table {self.tables}.</b> {caption}</caption>'
            f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
        )


def inspection_page(
    name: str,
    facts: Mapping[str, Any],
    rows: Mapping[int, Mapping[str, Any]],
    broken: list[str],
    token_ends: Callable[[str], list[tuple[int, int]]] | None = None,
) -> str:
    """The page.

    Args:
        name: Of the data set.
        facts: Of `inspect_pairs`, perhaps with `cosine` (of `mean_cosine`), `tokenizer` (its name) and `seed`.
        rows: The rows whose numbers are in `facts["shown"]`, the image as `{"bytes", "path"}`.
        broken: Gets a line for each image of those rows that cannot be read; a placeholder stands for it.
        token_ends: Gives, for a caption, where CLIP stops to read: (limit, end of the part read, in characters) for
            each of the limits that cut it.
    """
    numbers = _Numbers()
    cards = {number: _row(number, row, broken, token_ends) for number, row in rows.items()}
    sections = [
        _header(name, facts),
        _tiles(facts),
        _notices(facts, broken),
        _samples(facts, cards, numbers),
        _scores(facts, cards, numbers),
        _lengths(facts, numbers),
        _regions(facts, numbers),
        _cosine(facts, numbers),
        _repetitions(facts, numbers),
        _left_out(facts, broken),
        _made_with(facts),
    ]
    return page(f"Local image-text pairs: {name}", "".join(sections), CHART_STYLE, SCRIPT)


def shown_rows(facts: Mapping[str, Any]) -> list[int]:
    """The numbers of the rows that the page shows."""
    return sorted({*facts["shown"]["sample"], *facts["shown"]["lowest"]})


def _header(name: str, facts: Mapping[str, Any]) -> str:
    settings = facts["settings"]
    made = ""
    if settings:
        made = f" Matched by {_model(settings.get('model'))}; {_detector(settings.get('detector'))}."
    source = f" from {html.escape(public_name(str(facts['source'])))}" if facts["source"] else ""
    return (
        f"<header><h1>Local image-text pairs: {html.escape(name)}</h1>"
        f'<p class="lead">{facts["rows"]:,} images with captions{source}, their sentences matched to regions:'
        f" {facts['pairs']['count']:,} local pairs.{made}</p></header>"
    )


def _tiles(facts: Mapping[str, Any]) -> str:
    captions, regions = facts["captions"], facts["regions"]
    best = sum(counts["best"] for counts in regions["by_source"].values())
    detected = best - regions["by_source"].get(DEFAULT, {"best": 0})["best"]
    tiles = [
        (f"{facts['rows']:,}", "images"),
        (f"{facts['pairs']['count']:,}", "sentence-region pairs"),
        (f"{captions['words']['mean']:.0f}", f"words a caption, {captions['sentences']['mean']:.1f} sentences"),
    ]
    if captions["tokens"]:
        shares = [captions["tokens"]["truncated"][str(limit)]["share"] for limit in TOKEN_LIMITS]
        tiles += [
            (_percent(share), f"of the captions are cut at {limit} tokens")
            for share, limit in zip(shares, TOKEN_LIMITS)
        ]
    tiles.append((_percent(detected / best) if best else "-", "of the best pairs are on a detected region"))
    if _has_detector(facts):
        tiles.append((_percent(facts["no_detection"]["share"]), "of the images have no detection"))
    if "cosine" in facts:
        tiles.append(
            (f"{facts['cosine']['mean']:.4f}", f"mean image-caption cosine, {_model(facts['cosine']['model'])}")
        )
    cells = "".join(f'<div class="tile"><b>{value}</b><span>{what}</span></div>' for value, what in tiles)
    columns = len(tiles) if len(tiles) < 8 else -(-len(tiles) // 2)
    return f'<div class="tiles" style="--n:{columns}">{cells}</div>'


def _notices(facts: Mapping[str, Any], broken: Sequence[str]) -> str:
    notices = []
    if facts["missing_shards"]:
        names = ", ".join(facts["missing_shards"][:4]) + (" ..." if len(facts["missing_shards"]) > 4 else "")
        missing = len(facts["missing_shards"])
        notices.append(
            f"Not complete: of {missing + facts['shards']} shards {missing} missing ({names}). Figures are of the rest."
        )
    if broken:
        notices.append(f"Images shown here that cannot be read: {len(broken)}, listed at the end.")
    if facts["problems"]["count"]:
        first = facts["problems"]["first"][0]
        notices.append(f"Rows that are not sound: {facts['problems']['count']:,}, the first: {first}.")
    return "".join(f'<div class="notice">{html.escape(notice)}</div>' for notice in notices)


def _samples(facts: Mapping[str, Any], cards: Mapping[int, str], numbers: _Numbers) -> str:
    sample = facts["shown"]["sample"]
    if not sample:
        return ""
    what = (
        f"{len(sample):,} of {facts['rows']:,} rows, drawn at random. A sentence has the number and the colour of the"
        " region that it was matched to; several may share one. The thick frame and ★ mark the best pair of the image,"
        " the one used for training. Right of each sentence: the region's label, and the cosine of sentence and crop."
    )
    if facts["captions"]["tokens"]:
        what += " Where a CLIP of 77 or 248 tokens stops to read, the text has a mark with that number."
    hint = '<p class="screen">Point at a sentence to see its region alone, or at a region to see its sentences.</p>'
    return f"<h2>Sample rows</h2>{hint}" + numbers.figure("".join(cards[number] for number in sample), what, "rows")


def _scores(facts: Mapping[str, Any], cards: Mapping[int, str], numbers: _Numbers) -> str:
    pairs = facts["pairs"]
    if not pairs["count"]:
        return ""
    series = [Series("all pairs", pairs["histogram"]["counts"])]
    series.append(Series("best pairs", pairs["best_histogram"]["counts"]))
    chart = _key("all pairs", "best pairs") + histogram_chart(
        series, pairs["histogram"]["edges"], "cosine of sentence and region crop"
    )
    figure = numbers.figure(
        chart,
        f"Scores of all {pairs['count']:,} pairs and of the best pair of each image; each histogram adds up to 100 %.",
    )
    rows = [
        [name, *(f"{values[key]:.3f}" for key in ("mean", "median", "low", "high", "min", "max"))]
        for name, values in (("all pairs", pairs["scores"]), ("best pairs", pairs["best_scores"]))
        if values
    ]
    table = numbers.table(["", "mean", "median", "5 %", "95 %", "least", "greatest"], rows, "Scores.")
    lowest = [number for number in facts["shown"]["lowest"] if number in cards]
    worst = ""
    if lowest:
        worst = "<h2>Lowest scores</h2>" + numbers.figure(
            "".join(cards[number] for number in lowest),
            "The images whose best pair has the lowest score: where a caption most likely belongs to another image.",
            "rows",
        )
    return f'<h2>Scores</h2><div class="pair">{figure}<div>{table}</div></div>{worst}'


def _lengths(facts: Mapping[str, Any], numbers: _Numbers) -> str:
    captions = facts["captions"]
    counted, tokens = captions["sentences_histogram"], captions["tokens"]
    figures = [
        numbers.figure(
            histogram_chart(
                [Series("images", counted["counts"])], counted["edges"], "sentences in the caption", whole=True
            ),
            _spread(captions["sentences"], "sentences a caption", 1),
        )
    ]
    if tokens:
        marks = [(limit, f"{limit}") for limit in TOKEN_LIMITS]
        cut = ", ".join(
            f"{tokens['truncated'][str(limit)]['rows']:,} ({_percent(tokens['truncated'][str(limit)]['share'])}) have"
            f" more than {limit}"
            for limit in TOKEN_LIMITS
        )
        figures.append(
            numbers.figure(
                histogram_chart(
                    [Series("captions", tokens["histogram"]["counts"])],
                    tokens["histogram"]["edges"],
                    "tokens of the caption",
                    marks,
                ),
                _spread(tokens, f"tokens a caption ({_model(facts.get('tokenizer'))}, start and end marks included)", 0)
                + f" {cut} and are cut there.",
            )
        )
    else:
        histogram = captions["words_histogram"]
        figures.append(
            numbers.figure(
                histogram_chart([Series("captions", histogram["counts"])], histogram["edges"], "words in the caption"),
                _spread(captions["words"], "words a caption", 0)
                + " Tokens were not counted: no CLIP tokenizer was at hand (--tokenizer).",
            )
        )
    return f'<h2>Captions</h2><div class="pair">{"".join(figures)}</div>'


def _regions(facts: Mapping[str, Any], numbers: _Numbers) -> str:
    regions = facts["regions"]
    totals = {key: sum(row[key] for row in regions["by_source"].values()) for key in ("candidates", "chosen", "best")}

    def cell(count: int, total: int) -> str:
        share = count / total if total else 0.0
        return (
            f'<span class="bar" style="width:{100 * share:.1f}%"></span>{count:,}<br><small>{_percent(share)}</small>'
        )

    rows = [
        [html.escape(_source(source)), *(cell(row[key], totals[key]) for key in totals)]
        for source, row in regions["by_source"].items()
    ]
    spread = regions["per_image"]
    first = numbers.table(
        ["source", "candidates", "chosen by a sentence", "in the best pair"],
        rows,
        f"Regions by source. {spread['mean']:.1f} candidates an image on average, {spread['min']:.0f} to"
        f" {spread['max']:.0f}; the default regions are the quadrants and the centre.",
    )
    labels = [
        [html.escape(_words(entry["label"]) or "-"), html.escape(_source(entry["source"])), f"{entry['chosen']:,}"]
        for entry in regions["chosen_labels"]
    ]
    second = numbers.table(["label", "source", "chosen"], labels, "The labels chosen most often.", "labels")
    missing = facts["no_detection"]
    if _has_detector(facts):
        text = (
            f"<p>{missing['rows']:,} images ({_percent(missing['share'])}) have no detection and only default regions."
        )
        if missing["rows"]:
            names = ", ".join(html.escape(file) for file in missing["files"])
            text += f" The first: <small>{names}</small>."
        text += "</p>"
    else:
        text = "<p>No detector took part: every image has its default regions only.</p>"
    return f'<h2>Regions</h2>{text}<div class="pair"><div>{first}</div><div>{second}</div></div>'


def _cosine(facts: Mapping[str, Any], numbers: _Numbers) -> str:
    if "cosine" not in facts:
        return ""
    found = facts["cosine"]
    interval = ""
    if found["interval"]:
        interval = f" (95 % interval {found['interval'][0]:.4f} to {found['interval'][1]:.4f})"
    text = (
        f"<p>Mean cosine of an image and its whole caption under {_model(found['model'])}, which reads"
        f" {found['tokens']} tokens: <b>{found['mean']:.4f}</b>{interval}, on {found['rows']:,} of"
        f" {facts['rows']:,} rows drawn at random."
    )
    if found["mismatched"] is not None:
        text += f" With the caption of another image it is {found['mismatched']:.4f}."
    published = " and ".join(f"{value:.4f} for {name}" for name, value in found["published"].items())
    text += (
        f" FAST-GOAL's paper reports {published}, under Long-CLIP-L; cosines of different models do not compare.</p>"
    )
    if found["broken"]:
        text += f"<p>Images of that draw that could not be read and were left out: {len(found['broken'])}.</p>"
    series = [Series("image and its caption", found["histogram"]["counts"])]
    names = ["image and its caption"]
    if found["mismatched_histogram"]:
        series.insert(0, Series("image and another's caption", found["mismatched_histogram"]["counts"]))
        names.insert(0, "image and another's caption")
    chart = histogram_chart(series, found["histogram"]["edges"], "cosine of image and caption")
    if len(names) == 2:
        chart = _key(*names) + chart
    figure = numbers.figure(chart, "The further apart the two are, the more the captions say about their own image.")
    return f'<h2>Do captions fit their images?</h2><div class="pair"><div>{text}</div>{figure}</div>'


def _repetitions(facts: Mapping[str, Any], numbers: _Numbers) -> str:
    equal, near, images = facts["duplicate_captions"], facts["near_duplicate_captions"], facts["duplicate_images"]
    rows = [
        [
            "captions with the same words",
            f"{equal['rows']:,}",
            f"{equal['groups']:,}",
            _percent(equal["rows"] / facts["rows"]),
        ],
        [
            f"captions nearly alike (Jaccard {near['jaccard']:g})",
            f"{near['rows']:,}",
            f"{near['groups']:,}",
            _percent(near["rows"] / facts["rows"]),
        ],
        [
            "the same image file",
            f"{images['rows']:,}",
            f"{images['groups']:,}",
            _percent(images["rows"] / facts["rows"]),
        ],
    ]
    parts = [
        numbers.table(
            ["", "rows", "groups", "share of all rows"],
            rows,
            "Repetitions. Case and punctuation do not count. Nearly alike: of the runs of three words of two captions"
            " so large a share is common to both; found by MinHash, then compared exactly.",
        )
    ]
    worst = [
        [
            f"{group['times']:,}",
            f"<div>{html.escape(_short(group['caption']))}</div>",
            _files(group["files"]),
        ]
        for group in equal["worst"]
    ]
    if worst:
        parts.append(numbers.table(["times", "caption", "files"], worst, "The captions repeated most often.", "texts"))
    worst = [
        [
            f"{group['times']:,}",
            "".join(f"<div>{text}</div>" for text in _differences(*group["captions"])),
            f"{group['jaccard']:.2f}",
            _files(group["files"]),
        ]
        for group in near["worst"]
    ]
    if worst:
        parts.append(
            numbers.table(
                ["rows", "two of them, what differs is marked", "Jaccard", "files"],
                worst,
                "The largest groups of captions that are nearly alike, with the two least similar of those that link"
                " the group.",
                "texts",
            )
        )
    worst = [[f"{group['times']:,}", _files(group["files"])] for group in images["worst"]]
    if worst:
        parts.append(numbers.table(["times", "files"], worst, "The image files repeated most often.", "texts"))
    return "<h2>Repetitions</h2>" + "".join(parts)


def _left_out(facts: Mapping[str, Any], broken: Sequence[str]) -> str:
    parts = []
    skipped = facts["skipped"]
    if skipped:
        reasons = [str(entry.get("reason", entry)) for entry in skipped]
        parts.append(f"<p>Rows that the run left out, as they could not be used: {len(skipped):,}.</p>{_list(reasons)}")
    if broken:
        parts.append(f"<p>Images of shown rows that cannot be read:</p>{_list(broken)}")
    if "cosine" in facts and facts["cosine"]["broken"]:
        parts.append(f"<p>Images that the cosine left out:</p>{_list(facts['cosine']['broken'])}")
    if facts["problems"]["count"]:
        parts.append(
            f"<p>Rows that are not sound: {facts['problems']['count']:,}.</p>{_list(facts['problems']['first'])}"
        )
    return "<h2>Rows left out or broken</h2>" + "".join(parts) if parts else ""


def _made_with(facts: Mapping[str, Any]) -> str:
    sizes = facts["images"]
    entries = {
        "rows": f"{facts['rows']:,} in {facts['shards']:,} files, {facts['bytes'] / 1e6:,.1f} MB",
        "image size": f"{sizes['width']['median']:.0f} x {sizes['height']['median']:.0f} pixels (medians), up to"
        f" {sizes['width']['max']:.0f} x {sizes['height']['max']:.0f}",
    }
    for key, value in facts["settings"].items():
        if value is not None and key not in ("source_fingerprint", "source_rows"):
            entries[key.replace("_", " ")] = _model(value) if key == "model" else html.escape(_plain_name(str(value)))
    if facts["versions"]:
        entries["versions"] = html.escape(", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    listed = "".join(f"<dt>{html.escape(key)}</dt><dd>{value}</dd>" for key, value in entries.items())
    return f'<h2>How it was made</h2><dl class="settings">{listed}</dl>'


def _row(
    number: int,
    row: Mapping[str, Any],
    broken: list[str],
    token_ends: Callable[[str], list[tuple[int, int]]] | None,
) -> str:
    caption, regions = row["caption"] or "", row["regions"] or []
    sentences = row["sentences"] or []
    pair_of = {
        pair["sentence"]: pair
        for pair in row["pairs"] or []
        if pair["region"] is not None and 0 <= pair["region"] < len(regions)
    }
    frames = row_frames(row)
    colour = {frame.region: frame.colour for frame in frames}
    ends = sorted(token_ends(caption), key=lambda end: end[1]) if token_ends is not None else []
    items = []
    for index, sentence in enumerate(sentences):
        text = ""
        read = sentence["start"]
        while ends and ends[0][1] <= sentence["end"]:
            limit, end = ends.pop(0)
            text += f'{html.escape(caption[read:end])}<i class="cut" title="{_CUT.format(limit)}">{limit}</i>'
            read = max(read, end)
        text += html.escape(caption[read : sentence["end"]])
        if index not in pair_of:
            items.append(f'<li class="none"><span class="chip">{index + 1}</span><span class="text">{text}</span></li>')
            continue
        pair = pair_of[index]
        region = regions[pair["region"]]
        label = html.escape(_words(region["label"] or region["source"] or ""))
        star = '<span class="star">★</span> ' if pair["best"] else ""
        items.append(
            f'<li class="{"best" if pair["best"] else "other"}" style="--c:{colour[pair["region"]]}" tabindex="0"'
            f' data-region="{pair["region"]}"><span class="chip">{index + 1}</span><span class="text">{text}</span>'
            f'<span class="meta">{star}{label} {pair["score"]:.3f}</span></li>'
        )
    size = f"{row['width']} x {row['height']}"
    heading = f"{html.escape(row['file_name'] or '')} <small>row {number:,}, {size}</small>"
    try:
        picture = framed_picture(
            load_image(row["image"] or {}, name=row["file_name"]), frames, row["file_name"] or "image"
        )
    except (ValueError, OSError) as error:
        broken.append(f"row {number}: {error}")
        picture = f'<div class="broken"><span>This image cannot be read.<br>{html.escape(str(error))}</span></div>'
    return (
        f'<article class="row linked"><div>{picture}</div><div><h3>{heading}</h3>'
        f'<ol class="sentences">{"".join(items)}</ol></div></article>'
    )


def _key(first: str, second: str) -> str:
    return (
        f'<div class="key"><span><i style="background:var(--pale)"></i>{first}</span>'
        f'<span><i style="background:var(--strong)"></i>{second}</span></div>'
    )


def _spread(values: Mapping[str, float], what: str, digits: int) -> str:
    return (
        f"{values['mean']:.{digits}f} {what} on average; the middle 90 % have {values['low']:.0f} to"
        f" {values['high']:.0f}, the longest {values['max']:,.0f}."
    )


def _differences(one: str, other: str) -> tuple[str, str]:
    """Both texts with the words marked that are in one alone."""
    first, second = one.split(), other.split()
    marked: tuple[list[str], list[str]] = ([], [])
    for kind, a, b, c, d in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        for words, target in ((first[a:b], marked[0]), (second[c:d], marked[1])):
            text = html.escape(" ".join(words))
            if text:
                target.append(text if kind == "equal" else f"<mark>{text}</mark>")
    return " ".join(marked[0]), " ".join(marked[1])


def _files(names: Sequence[str]) -> str:
    return f"<small>{'<br>'.join(html.escape(name) for name in names[:3])}{'<br>...' if len(names) > 3 else ''}</small>"


def _list(lines: Sequence[str]) -> str:
    shown = "".join(f"<li>{html.escape(line)}</li>" for line in lines[:SHOWN_SKIPPED])
    more = f"<p>... and {len(lines) - SHOWN_SKIPPED:,} more.</p>" if len(lines) > SHOWN_SKIPPED else ""
    return f"<ul>{shown}</ul>{more}"


def _has_detector(facts: Mapping[str, Any]) -> bool:
    return any(source != DEFAULT for source in facts["regions"]["by_source"])


def _detector(name: Any) -> str:
    text = str(name)
    if text == "none":
        return "no detector"
    if text.startswith("column:"):
        return f"boxes from the column {html.escape(text.removeprefix('column:'))}"
    return f"regions proposed by {html.escape(_plain_name(text))}"


def _model(name: Any) -> str:
    return html.escape(_plain_name(str(name)))


def _plain_name(name: str) -> str:
    """A model as the manifest names it, without the hash of its files and the folders above it."""
    name = name.partition("#")[0]
    return public_name(name) if "/" in name else name


def _source(source: str) -> str:
    return "default regions" if source == DEFAULT else source or "unknown"


def _words(label: str) -> str:
    return label.replace("_", " ")


def _short(text: str, length: int = 400) -> str:
    return text if len(text) <= length else text[: length - 3].rstrip() + "..."


def _percent(share: float) -> str:
    if 0 < share < 0.0005:
        return "<0.1 %".replace("<", "&lt;")
    return f"{100 * share:.1f} %"


def page_name(folder: Path) -> str:
    """What to call the data set of a folder."""
    return folder.resolve().name or str(folder)
