"""Markdown of the results pages: one per data set, and an index."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from recpipe.reporting.formatting import INTERVAL, MISSING, count, decimals, duration, interval, metric_title
from recpipe.reporting.results.dot_plot import Point, dot_plot
from recpipe.reporting.results.ours import WARM_AND_COLD, OurRow, Value
from recpipe.reporting.results.published import MissingResult, PublishedResults, PublishedRow
from recpipe.reporting.results.sections import ABOVE, BELOW, WITHIN, Row, Section, metric_value

MAIN = "ndcg@10"
COLUMNS = ("recall@10", "ndcg@5", "recall@5", "recall@1")  # beside NDCG@10 and its interval
GENERATED = "Written by `make results` from docs/results/published and from runs; do not edit."
LEGEND = (
    f"Rows in bold are ours. In the column *ours*, {ABOVE} means that our result of the same model is above the "
    f"published number and that the number lies outside of our interval, {BELOW} that ours is below, {WITHIN} that the "
    "number lies inside. Intervals are over users (bootstrap), not over trainings. With one target per user, Recall@k "
    "is the hit rate."
)

LEGEND_OF_OURS = (
    "No published numbers are listed for this data set; all rows are ours. Intervals are over users (bootstrap), not "
    "over trainings. With one target per user, Recall@k is the hit rate."
)


class Page(NamedTuple):
    """Text of a page, and its pictures by file name."""

    text: str
    pictures: dict[str, str]


def dataset_page(dataset: str, results: PublishedResults | None, parts: Sequence[Section], *, title: str) -> Page:
    """Write the page of a data set; without published results it has our rows only."""
    lines = [f"# {title}", "", f"<!-- {GENERATED} -->", ""]
    if results:
        sizes = f"{count(results.users)} users, {count(results.items)} items, {count(results.events)} events"
        lines += [f"Data set `{dataset}`: {sizes} as published.", "", *_bullets(results.notes)]
    else:
        lines += [f"Data set `{dataset}`.", ""]
    lines += [LEGEND if results else LEGEND_OF_OURS, ""]
    pictures = {}
    for part in parts:
        heading = f"{part.title}, other data" if part.other_data else part.title
        lines += [f"## {heading}", "", part.about, ""]
        if part.other_data and results:
            users = ", ".join(count(number) for number in sorted({row.users for row in part.ours}))
            lines += [f"These runs have {users} test users, not the {count(results.users)} of the published data.", ""]
        if part.fields is not None and len(points := _points(part)) > 1:
            name = f"{dataset}-{_slug(heading)}.svg"
            pictures[name] = dot_plot(points, metric=MAIN, title=f"{dataset}, {heading}")
            lines += [f"![{metric_title(MAIN)} of the table below, as a picture]({name})", ""]
        lines += [*_section_table(part), *_warm_and_cold_table(part), *_our_rows(part, results), *_sources(part)]
    if results and results.not_reproduced:
        lines += ["## Not reproduced", "", *_missing(results.not_reproduced)]
    return Page("\n".join(lines).rstrip("\n") + "\n", pictures)


def index_page(
    pages: Mapping[str, tuple[PublishedResults | None, Sequence[Section]]],
    not_built: Sequence[MissingResult],
    titles: Mapping[str, str],
) -> str:
    """Write the index: the best published and the best of our results for every data set and protocol.

    titles: of the data sets, by name.
    """
    lines = ["# Published results and ours", "", f"<!-- {GENERATED} -->", ""]
    lines += ["`make results` writes these pages. Numbers of different protocols are not compared.", ""]
    rows = []
    for dataset, (_, parts) in pages.items():
        link = f"[{titles.get(dataset, dataset)}]({dataset}.md)"
        for part in parts:
            if part.fields is None or part.other_data:
                continue
            best, ours = (_best(group) for group in (part.published, part.ours))
            rows.append([link, part.title, best, ours, _count_marks(part)])
            link = ""
    head = ["data set", "protocol", "best published NDCG@10", "best of ours", "ours against published rows"]
    lines += _table(head, rows, "lllll")
    lines += [f"{ABOVE} ours is above, {BELOW} below, {WITHIN} no difference beyond our interval.", ""]
    if not_built:
        lines += ["## Not built", "", *_missing(not_built)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _section_table(part: Section) -> list[str]:
    rows = [row for row in part.rows if any(metric_value(row, name) is not None for name in (MAIN, *COLUMNS))]
    names = [name for name in COLUMNS if any(isinstance(row, PublishedRow) and name in row.metrics for row in rows)]
    names = names or list(COLUMNS[:3])
    has_interval = any(isinstance(row, OurRow) and row.metrics.get(MAIN, Value(0)).low is not None for row in rows)
    head = ["#", "model", metric_title(MAIN), *([INTERVAL] if has_interval else []), *map(metric_title, names), "ours"]
    numbers = _numbers(part)
    cells = []
    for place, row in enumerate(rows, start=1):
        values = [_number(row, name) for name in (MAIN, *names)]
        if has_interval:
            main = row.metrics.get(MAIN)
            values.insert(1, interval(main.low, main.high) if isinstance(main, Value) else "")
        if isinstance(row, PublishedRow):
            model = f"{row.model} [{numbers[id(row)]}]"
            mark = part.mark(row)
            note = "" if mark is None else f"{mark.symbol} {mark.model}"
        else:
            model, note = f"**{_name(row, part)}**", ""
            values[0] = f"**{values[0]}**"
        rank = MISSING if part.fields is None or metric_value(row, MAIN) is None else str(place)
        cells.append([rank, model, *values, note])
    return _table(head, cells, "rl" + "r" * (len(head) - 3) + "l") if cells else []


def _warm_and_cold_table(part: Section) -> list[str]:
    """Metrics of targets with and without training events, where a published row has them."""
    published = [row for row in part.published if any(name in row.metrics for name in WARM_AND_COLD)]
    if not published:
        return []
    numbers = _numbers(part)
    rows = [row for row in part.rows if any(name in row.metrics for name in WARM_AND_COLD)]
    rows.sort(key=lambda row: -(metric_value(row, "warm_ndcg@10") or 0))
    cells = []
    for row in rows:
        mark = part.mark(row) if isinstance(row, PublishedRow) else None
        model = f"{row.model} [{numbers[id(row)]}]" if isinstance(row, PublishedRow) else f"**{_name(row, part)}**"
        note = "" if mark is None else f"{mark.symbol} {mark.model}"
        cells.append([model, *(_number(row, name) for name in WARM_AND_COLD), note])
    titles = [f"{kind} {metric_title(name)}" for kind, _, name in (name.partition("_") for name in WARM_AND_COLD)]
    head = ["model", *titles, "ours, warm"]
    return ["Targets with training events (warm) and without (cold):", "", *_table(head, cells, "lrrrrl")]


def _our_rows(part: Section, results: PublishedResults | None) -> list[str]:
    """How our rows of a section were made."""
    if not part.ours:
        return []
    rows = []
    for row in sorted(part.ours, key=lambda row: row.model):
        notes = [row.members] if row.members else []
        if row.kinds_of_ids:
            note = results.note_on_ids if results else None
            notes.append(note or f"ids: {'+'.join(row.kinds_of_ids)}")
        if row.history_bias and not row.protocol.get("exclude_seen"):
            notes.append(f"{row.history_bias:g} on the scores of seen items (`train.history_bias`)")
        seeds = ", ".join(map(str, row.seeds))
        origin = [row.protocol["id"], row.settings_id or MISSING, seeds, row.commit or MISSING, row.hardware or MISSING]
        rows.append([row.model, *map(str, origin), duration(row.train_seconds), row.finished[:10], "; ".join(notes)])
    head = ["ours", "protocol id", "settings id", "seeds", "commit", "hardware", "training", "date", "notes"]
    return _table(head, rows, "lllllllll")


def _sources(part: Section) -> list[str]:
    """Numbered list of the published rows with source and caveats."""
    numbers = _numbers(part)
    lines = []
    for row in [row for row in part.rows if isinstance(row, PublishedRow)]:
        notes = [*row.caveats, *(["number not compared with its source"] if row.unverified else [])]
        if row.seeds:
            notes.insert(0, f"mean of {row.seeds} seeds" if row.seeds > 1 else "one seed")
        notes += [f"± {decimals(value)} {metric_title(name)}" for name, value in row.std.items()]
        about = f" ({'; '.join(notes)})" if notes else ""
        lines.append(f"{numbers[id(row)]}. {row.model}, {row.kind}: {row.source}{about}.")
    return [*lines, ""] if lines else []


def _numbers(part: Section) -> dict[int, int]:
    """Numbers of the published rows of a section, in the order of the page, by object."""
    rows = [row for row in part.rows if isinstance(row, PublishedRow)]
    return {id(row): number for number, row in enumerate(rows, start=1)}


def _points(part: Section) -> list[Point]:
    points = []
    for row in part.rows:
        value = row.metrics.get(MAIN)
        if isinstance(row, OurRow) and isinstance(value, Value):
            points.append(Point(_name(row, part), value.mean, value.low, value.high, is_ours=True))
        elif isinstance(row, PublishedRow) and value is not None:
            points.append(Point(row.model, metric_value(row, MAIN) or 0.0))
    return points


def _name(row: OurRow, part: Section) -> str:
    """Return the model, with settings id and seeds where these tell several rows of it apart."""
    same = [other for other in part.ours if other.model == row.model]
    seeds = ", ".join(map(str, row.seeds))
    parts = [row.settings_id or "settings unknown"] if len({other.settings_id for other in same}) > 1 else []
    if sum(other.settings_id == row.settings_id for other in same) > 1:
        parts.append(f"seeds {seeds}" if len(row.seeds) > 1 else f"seed {seeds}")
    return f"{row.model} ({', '.join(parts)})" if parts else row.model


def _best(rows: Sequence[Row]) -> str:
    values = [(value, row.model) for row in rows if (value := metric_value(row, MAIN)) is not None]
    if not values:
        return MISSING
    value, model = max(values)
    return f"{model} {decimals(value)}"


def _count_marks(part: Section) -> str:
    marks = [mark.symbol for row in part.published if (mark := part.mark(row)) is not None]
    counts = [f"{marks.count(symbol)} {symbol}" for symbol in (ABOVE, WITHIN, BELOW) if symbol in marks]
    return " ".join(counts) or MISSING


def _number(row: Row, name: str) -> str:
    value = metric_value(row, name)
    return MISSING if value is None else decimals(value)


def _missing(models: Sequence[MissingResult]) -> list[str]:
    return _table(["model", "why"], [[entry.model, entry.why] for entry in models], "ll")


def _bullets(texts: Sequence[str]) -> list[str]:
    return [*(f"- {text}" for text in texts), ""] if texts else []


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], alignment: str) -> list[str]:
    marks = ["---:" if side == "r" else "---" for side in alignment]
    lines = [head, marks, *[[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", title.lower()).strip("-")
