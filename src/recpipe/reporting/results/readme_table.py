"""Results table of README.md: NDCG@10 of a few models on a few data sets, from the store of our results."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from recpipe.reporting.formatting import MISSING, decimals
from recpipe.reporting.results.ours import OurRow

START, END = "<!-- results -->", "<!-- /results -->"
METRIC = "ndcg@10"
WIDTH = 100  # characters of a line of prose
MODELS = {  # conf name: what it is
    "popular": "most events",
    "item_knn": "neighbours of items",
    "markov": "transitions between items",
    "sasrec": "self-attention over item ids",
    "rpg": "semantic ids, all codes at once",
}


class Column(NamedTuple):
    """A data set and one of its named protocols; the numbers of a column are comparable."""

    dataset: str
    protocol: str


COLUMNS = (Column("online_retail", "repeats"), Column("ml-100k", "sas"), Column("amazon-beauty", "papers"))


class ReadmeError(ValueError):
    """README.md has no place for the table."""


def update_readme(text: str, rows: Iterable[OurRow], titles: Mapping[str, str]) -> str:
    """Return the text of README.md with a new table between the markers.

    titles: titles of data sets by name. Raises ReadmeError unless each marker occurs once.
    """
    pattern = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)
    if len(pattern.findall(text)) != 1 or (text.count(START), text.count(END)) != (1, 1):
        raise ReadmeError(f"README.md needs the markers {START} and {END} once, around its results table")
    return pattern.sub(lambda _: f"{START}\n{readme_table(rows, titles)}{END}", text)


def readme_table(rows: Iterable[OurRow], titles: Mapping[str, str]) -> str:
    """Format the table as Markdown: the best of a complete column in bold, a bias on seen items as a footnote."""
    newest: dict[tuple[str, Column], OurRow] = {}
    for row in sorted(rows, key=lambda row: row.finished):
        newest[row.model, Column(row.dataset, str(row.protocol.get("name")))] = row
    links = [f"[{titles.get(column.dataset, column.dataset)}](docs/results/{column.dataset}.md)" for column in COLUMNS]
    head = ["model", "what", *(f"{link}, `{column.protocol}`" for link, column in zip(links, COLUMNS, strict=True))]
    lines = [head, ["---", "---", *["---:"] * len(COLUMNS)]]
    best = {}
    for column in COLUMNS:
        values = [value for model in MODELS if (value := _value(newest.get((model, column)))) is not None]
        best[column] = max(values) if len(values) == len(MODELS) else None
    for model, what in MODELS.items():
        cells = [_cell(newest.get((model, column)), best[column]) for column in COLUMNS]
        lines.append([f"`{model}`", what, *cells])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    biases: dict[tuple[Column, float], list[str]] = {}
    for (model, column), row in sorted(newest.items()):
        if model in MODELS and column in COLUMNS and row.history_bias:
            biases.setdefault((column, row.history_bias), []).append(f"`{model}`")
    notes = [
        f"{titles.get(column.dataset, column.dataset)}: {' and '.join(models)} have `train.history_bias={bias:g}`, "
        "a number added to the scores of items in the history."
        for (column, bias), models in biases.items()
    ]
    if f"| {MISSING} |" in table:
        notes.insert(0, f"{MISSING}: not measured yet.")
    return f"{table}\n" + (f"\n{textwrap.fill(' '.join(notes), WIDTH)}\n" if notes else "")


def _value(row: OurRow | None) -> float | None:
    return row.metrics[METRIC].mean if row is not None and METRIC in row.metrics else None


def _cell(row: OurRow | None, best: float | None) -> str:
    value = _value(row)
    if value is None:
        return MISSING
    return f"**{decimals(value)}**" if value == best else decimals(value)
