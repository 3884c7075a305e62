"""Section of sequence studies: figures and tables of the pipelines study and context."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go
import polars as pl

from recpipe.reporting.figures import (
    CAPTIONS,
    COLOURS,
    Axis,
    Table,
    bars,
    drop_missing,
    escape,
    figure,
    line,
    model_colour,
)
from recpipe.reporting.formatting import MISSING, count, decimals, duration, metric_title, number, percent

Loaders = Mapping[str, Callable[[], Any]]
Result = Mapping[str, Any]  # of one run, as JSON
MAX_HEATMAP_MODELS = 3
COST_PANELS = {  # lower panel by setting: key and axis title
    "train.window": ("seconds_per_epoch", "s / epoch"),
    "dim": ("used_dimensions", "dimensions used"),
}
REQUIRED = {"context": ("model", "protocol", "effective", "attribution", "gap"), "study": ("study", "model", "rows")}


@dataclass(frozen=True)
class StudySection:
    """Figures by name; ``tables`` and ``captions`` of study figures by the same names; messages of unusable files."""

    figures: dict[str, go.Figure] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    captions: dict[str, dict[str, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def study_section(contexts: Loaders, studies: Loaders, board: pl.DataFrame, *, protocol: str) -> StudySection:
    """Build the section from results under ``protocol``, models in the order of ``board``; both are loaders by run."""
    problems: list[str] = []
    context_results = _read(contexts, "context", protocol, board, problems)
    study_results = _read(studies, "study", protocol, board, problems)
    figures = {
        "effective_context": _effective_context(context_results, board),
        "attribution": _attribution(context_results),
        "gap_by_length": _gap(context_results, board),
    }
    tables, captions = {}, {}
    for name in dict.fromkeys(result["study"] for result in study_results):
        results = [result for result in study_results if result["study"] == name]
        key = f"study_{name}"
        figures[key], tables[key] = _study_figure(results, board), _study_table(results)
        captions[key] = CAPTIONS.get(key, {"title": f"Study {name}", "text": CAPTIONS["study_length"]["text"]})
    if context_results:
        tables["effective_context"] = _context_table(context_results)
    return StudySection(drop_missing(figures), tables, captions, problems)


def _read(loaders: Loaders, kind: str, protocol: str, board: pl.DataFrame, problems: list[str]) -> list[dict[str, Any]]:
    """Usable results under ``protocol``, in the order of the board, each with a ``label``."""
    results = []
    for run, load in loaders.items():
        try:
            result = load()
        except (OSError, ValueError) as error:
            message = str(error)
            problems.append(message if run in message else f"the {kind} of {run} cannot be read: {message}")
            continue
        if not isinstance(result, dict) or any(key not in result for key in REQUIRED[kind]):
            problems.append(f"the {kind} of {run} is of another version: run the pipeline {kind} again")
        elif result.get("protocol") == protocol:
            results.append(dict(result))
    names = dict.fromkeys(board["name"] if board.height else [])
    order = {name: number for number, name in enumerate(names)}
    results.sort(key=lambda result: (order.get(result["model"], len(order)), result["model"], result.get("seed") or 0))
    seeds = Counter(model for model, _ in {(result["model"], result.get("seed")) for result in results})
    for result in results:
        result["label"] = result["model"] + (f", seed {result['seed']}" if seeds[result["model"]] > 1 else "")
    return results


def _study_figure(results: Sequence[Result], board: pl.DataFrame) -> go.Figure | None:
    results = [result for result in results if result["rows"]]
    setting = next((result["setting"] for result in results), None)
    if setting is None:
        return _ablation(results, board)
    return _setting([result for result in results if result["setting"] == setting], setting, board)


def _setting(results: Sequence[Result], setting: str, board: pl.DataFrame) -> go.Figure:
    """The metric by value of a setting, and a cost in the lower panel."""
    cost, unit = COST_PANELS.get(setting, COST_PANELS["train.window"])
    metric = results[0]["metric"]
    traces = []
    for result in results:
        rows, label = result["rows"], escape(result["label"])
        texts = [
            f"{label}, {escape(setting)} {row['name']}: {row[metric]:.4f}<br>"
            f"{duration(row['seconds_per_epoch'])} per epoch, {row['epochs']} epochs"
            for row in rows
        ]
        colour, x = _colour(result, results, board), [str(row["value"]) for row in rows]
        options: dict[str, Any] = {"colour": colour, "hover": "%{customdata}", "customdata": texts}
        traces.append(line(x, [row[metric] for row in rows], name=label, **options))
        traces.append(line(x, [row.get(cost) for row in rows], yaxis="y2", showlegend=False, **options))
    values = sorted({row["value"] for result in results for row in result["rows"]})
    x_axis = {"categoryorder": "array", "categoryarray": [str(value) for value in values], "anchor": "y2"}
    axes: dict[str, Any] = {
        "x_axis": Axis.CATEGORIES | x_axis,
        "y_axis": {"domain": [0.4, 1]},
        "yaxis2": Axis.VERTICAL | Axis.FROM_ZERO | {"domain": [0, 0.3], "title": {"text": unit, "standoff": 12}},
    }
    y = f"validation {metric_title(metric)}"
    return figure(traces, x=escape(setting), y=y, **axes, height=460, showlegend=len(results) > 1)


def _ablation(results: Sequence[Result], board: pl.DataFrame) -> go.Figure | None:
    """Change of the metric without a part, against the first row, the model as configured."""
    results = [result for result in results if len(result["rows"]) > 1]
    traces = []
    for result in results:
        metric, (full, *parts) = result["metric"], result["rows"]
        x, y = [row[metric] - full[metric] for row in parts], [escape(row["name"]) for row in parts]
        texts = [f"{row['name']}: {row[metric]:.4f} instead of {full[metric]:.4f}" for row in parts]
        name, colour = escape(result["label"]), _colour(result, results, board)
        traces.append(bars(x, y, name=name, colour=colour, hover="%{customdata}", customdata=texts, orientation="h"))
    if not traces:
        return None
    height = max(260, 110 + (20 + 18 * len(traces)) * max(len(result["rows"]) - 1 for result in results))
    title = f"change of validation {metric_title(results[0]['metric'])}"
    x_axis = {"tickformat": "+.3f", "nticks": 6, "zeroline": True}
    return figure(traces, x=title, x_axis=x_axis, y_axis=Axis.REVERSED_CATEGORIES, height=height)


def _effective_context(contexts: Sequence[Result], board: pl.DataFrame) -> go.Figure | None:
    traces = []
    kinds = (("truncated", "solid", "earlier ones removed"), ("shuffled", "dash", "earlier ones shuffled"))
    for context in contexts:
        full, rows = context["effective"]["whole"], context["effective"]["rows"]
        for kind, dash, meaning in kinds if full and rows else ():
            x, y = [str(row["events"]) for row in rows], [row[kind] / full for row in rows]
            label, values = escape(context["label"]), [row[kind] for row in rows]
            hover = f"{label}, last %{{x}} events, {meaning}: %{{y:.0%}} (%{{customdata:.4f}})"
            name, colour = f"{label}, {meaning}", _colour(context, contexts, board)
            traces.append(line(x, y, name=name, colour=colour, dash=dash, hover=hover, customdata=values))
    if not traces:
        return None
    axes = {"x_axis": Axis.CATEGORIES, "y_axis": Axis.PERCENT | Axis.FROM_ZERO}
    return figure(traces, x="last events", y="share of the metric", **axes)


def _attribution(contexts: Sequence[Result]) -> go.Figure | None:
    """Heat map: rows are models and history lengths, columns positions from the end up to the last share above 0."""
    contexts = [context for context in contexts if context["attribution"]][:MAX_HEATMAP_MODELS]
    rows = [(context["label"], group) for context in contexts for group in context["attribution"]]
    if not rows:
        return None
    lengths = [position for _, group in rows for position, share in enumerate(group["shares"], 1) if share > 0]
    width = max(lengths, default=1)
    heatmap = go.Heatmap(
        z=[group["shares"][:width] for _, group in rows],
        x=list(range(1, width + 1)),
        y=[f"{escape(label)} · {group['history']}" for label, group in rows],
        colorscale=[[0, "rgba(34,131,200,0.04)"], [1, COLOURS[0]]],
        zmin=0,
        colorbar={"tickformat": ".0%", "thickness": 10, "outlinewidth": 0},
        hovertemplate="%{y} events, position %{x} from the end: %{z:.1%}<extra></extra>",
    )
    title, height = "position from the end (1: last event)", max(260, 110 + 26 * len(rows))
    return figure([heatmap], x=title, y_axis=Axis.REVERSED_CATEGORIES, height=height)


def _gap(contexts: Sequence[Result], board: pl.DataFrame) -> go.Figure | None:
    traces = []
    folds = (("valid", "solid", "validation"), ("train", "dash", "training"))
    for context in contexts:
        groups, label = context["gap"], escape(context["label"])
        for key, dash, fold in folds if groups else ():
            x, y, users = ([group[column] for group in groups] for column in ("history", key, f"{key}_users"))
            hover = f"{label}, %{{x}} events, {fold}: %{{y:.4f}}<br>%{{customdata:,}} users"
            name, colour = f"{label}, {fold}", _colour(context, contexts, board)
            traces.append(line(x, y, name=name, colour=colour, dash=dash, hover=hover, customdata=users))
    if not traces:
        return None
    x_axis = Axis.CATEGORIES | {"title": {"text": "events before the target", "standoff": 16}}
    return figure(traces, y=metric_title(contexts[0]["metric"]), x_axis=x_axis, y_axis=Axis.FROM_ZERO)


def _study_table(results: Sequence[Result]) -> Table:
    metric = results[0]["metric"] or "ndcg@10"
    head = ["variant", "model", f"validation {metric_title(metric)}", "epochs", "s / epoch", "tokens / s"]
    rows = []
    for result in results:
        prefix = "" if result["setting"] is None else f"{result['setting']} "
        for row in result["rows"]:
            speed = [count(row["epochs"]), duration(row["seconds_per_epoch"]), count(row["tokens_per_second"])]
            dimensions = MISSING if row.get("used_dimensions") is None else f"{row['used_dimensions']:.1f}"
            size = [count(row["parameters"]), dimensions]
            start = [f"{prefix}{row['name']}", result["label"], decimals(row[metric])]
            rows.append([*start, *speed, *size, *_list_cells(row), *_gradient_cells(row)])
    lists = ["coverage", "popularity of items", "diversity", "tail items", "recall of tail targets"]
    return [*head, "parameters", "dimensions used", *lists, "gradient norm", "largest"], rows


def _list_cells(row: Result) -> list[str]:
    """Measures of the lists of a variant; missing in results of older versions."""
    lists = row.get("lists") or {}
    recall = {segment["segment"]: segment["recall"] for segment in row.get("popularity", [])}
    diversity = lists.get("diversity")
    return [
        percent(lists.get("coverage")),
        number(lists.get("arp")),
        MISSING if diversity is None else f"{diversity:.3f}",
        percent(lists.get("tail")),
        percent(recall.get("tail")),
    ]


def _gradient_cells(row: Result) -> list[str]:
    norms = (row.get(key) for key in ("gradient_norm", "gradient_norm_max"))
    return [MISSING if norm is None else f"{norm:.3g}" for norm in norms]


def _context_table(contexts: Sequence[Result]) -> Table:
    """The metric by number of events, and with the whole history shuffled."""
    numbers = sorted({row["events"] for context in contexts for row in context["effective"]["rows"]})
    rows = []
    for context in contexts:
        effective = context["effective"]
        full, shuffled = effective["whole"], effective["shuffled_all"]
        values = {row["events"]: decimals(row["truncated"]) for row in effective["rows"]}
        share = percent(shuffled / full) if full else MISSING
        cells = [values.get(number, MISSING) for number in numbers]
        rows.append([context["label"], decimals(full), *cells, f"{decimals(shuffled)} ({share})"])
    return ["model", "full history", *(f"last {number}" for number in numbers), "all shuffled"], rows


def _colour(result: Result, results: Sequence[Result], board: pl.DataFrame) -> str:
    """The colour of the model in other figures; models without a leaderboard row count from the last colour."""
    model = result["model"]
    if board.height and model in board["model"].to_list():
        return model_colour(model, board)
    models = list(dict.fromkeys(other["model"] for other in results))
    return COLOURS[-1 - models.index(model) % len(COLOURS)]
