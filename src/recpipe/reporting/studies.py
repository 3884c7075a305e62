"""The section of the report about sequence studies: what is on disk, as figures, tables and, if need be, problems."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go
import polars as pl

from recpipe.reporting.figures.studies import context_figures, label, study_figures
from recpipe.reporting.formatting import MISSING, count, metric_title, percent, seconds, short

Loads = Mapping[str, Callable[[], Any]]
Table = tuple[list[str], list[list[str]]]
NEEDED = {
    "context": ("model", "protocol", "effective", "attribution", "gap"),
    "study": ("study", "model", "rows"),
}
TITLES = {
    "length": "How long a history helps",
    "width": "How wide embeddings help",
    "ablation": "What each part is worth",
}
WORDS = {
    "length": "The model trained anew to read no more than so many events. Where the upper line is flat, longer "
    "histories only cost time, which the lower line shows; where it falls, they hurt.",
    "width": "The model trained anew with embeddings of other widths. The lower line says how many dimensions the "
    "items make use of (participation ratio): far below the width, the rest is idle.",
    "ablation": "The model trained anew without one of its parts. A bar to the left is what the part is worth; one to "
    "the right says that the model does better without it here. One seed: small bars may be luck.",
}


@dataclass(frozen=True)
class Studies:
    """``tables`` by the name of a figure, and ``words``, a title and a sentence, for those that captions lack."""

    figures: dict[str, go.Figure] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    words: dict[str, tuple[str, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def studies(contexts: Loads, studies_of: Loads, board: pl.DataFrame, *, protocol: str) -> Studies:
    """Of the runs under ``protocol``, models in the order of ``board``; both by run, as functions that load JSON."""
    problems: list[str] = []
    asked = _read(contexts, "context", protocol, board, problems)
    varied = _read(studies_of, "study", protocol, board, problems)
    figures = study_figures(varied, board) | context_figures(asked, board)
    names = dict.fromkeys(each["study"] for each in varied)
    tables = {f"study_{name}": _table([each for each in varied if each["study"] == name]) for name in names}
    if asked:
        tables["effective_context"] = _effective(asked)
    words = {
        f"study_{name}": (TITLES.get(name, f"Study {name}"), WORDS.get(name, WORDS["length"]))
        for name in names
    }
    return Studies(figures, tables, words, problems)


def _read(
    loads: Loads, kind: str, protocol: str, board: pl.DataFrame, problems: list[str]
) -> list[dict[str, Any]]:
    """What can be shown, in the order of the board; the rest is named."""
    found = []
    for run, load in loads.items():
        try:
            each = load()
        except (OSError, ValueError) as error:
            told = str(error)
            problems.append(told if run in told else f"the {kind} of {run} cannot be read: {told}")
            continue
        if not isinstance(each, dict) or any(key not in each for key in NEEDED[kind]):
            problems.append(f"the {kind} of {run} is of another version: run the pipeline {kind} again")
        elif each.get("protocol") == protocol:
            found.append(each)
    order = board["name"].to_list() if board.height else []
    place = {name: number for number, name in enumerate(dict.fromkeys(order))}
    found.sort(key=lambda each: (place.get(each["model"], len(place)), each["model"], each.get("seed") or 0))
    return _labelled(found)


def _labelled(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """With the seed in the name where a model is there with several."""
    seeds: dict[Any, set[Any]] = {}
    for each in found:
        seeds.setdefault(each["model"], set()).add(each.get("seed"))
    several = {model for model, known in seeds.items() if len(known) > 1}
    return [
        {
            **each,
            "label": f"{each['model']}, seed {each['seed']}" if each["model"] in several else each["model"],
        }
        for each in found
    ]


def _table(same: Sequence[Mapping[str, Any]]) -> Table:
    metric = same[0]["metric"] or "ndcg@10"
    head = ["variant", "model", f"validation {metric_title(metric)}", "epochs", "s / epoch", "tokens / s"]
    head += ["parameters", "dimensions used"]
    rows = []
    for each in same:
        for row in each["rows"]:
            used = row.get("used_dimensions")
            rows.append(
                [
                    row["name"] if each["setting"] is None else f"{each['setting']} {row['name']}",
                    label(each),
                    short(row[metric]),
                    count(row["epochs"]),
                    seconds(row["seconds_per_epoch"]),
                    count(row["tokens_per_second"]),
                    count(row["parameters"]),
                    MISSING if used is None else f"{used:.1f}",
                ]
            )
    return head, rows


def _effective(contexts: Sequence[Mapping[str, Any]]) -> Table:
    """The metric with fewer and fewer events, and in another order."""
    numbers = sorted({row["events"] for each in contexts for row in each["effective"]["rows"]})
    head = ["model", "whole history", *(f"last {number}" for number in numbers), "all shuffled"]
    rows = []
    for each in contexts:
        found = each["effective"]
        left = {row["events"]: row["truncated"] for row in found["rows"]}
        cells = [short(left[number]) if number in left else MISSING for number in numbers]
        mixed = found["shuffled_all"]
        share = percent(mixed / found["whole"]) if found["whole"] else MISSING
        rows.append([label(each), short(found["whole"]), *cells, f"{short(mixed)} ({share})"])
    return head, rows
