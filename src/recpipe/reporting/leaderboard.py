"""Leaderboard: one row per protocol, model and settings, means over seeds, ranked within a protocol."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from recpipe.evaluation.metrics import MISSES
from recpipe.reporting.formatting import (
    INTERVAL,
    MISSING,
    count,
    duration,
    interval,
    mean_and_std,
    metric_title,
    percent,
)
from recpipe.reporting.runs import Run, RunGroup, group_folds, group_runs, names_by_protocol, read_runs

log = logging.getLogger(__name__)

Certainty = Mapping[str, Mapping[str, Any]]  # by protocol
TRAINING_COST = ("train_seconds", "seconds_per_epoch", "epochs", "parameters", "peak_memory_mib")
INFERENCE_COST = ("inference_users_per_second", "inference_latency_ms_p50", "inference_latency_ms_p95")
COUNTS = ("users", "targets", *MISSES, "cold_targets")
METRICS = ("recall", "hit_rate", "ndcg", "mrr", "map", "coverage")  # columns of the printed tables, in this order
WARM_AND_COLD = ("warm_recall", "cold_recall")  # printed where at least COLD_SHARE of the targets are cold
COLD_SHARE = 0.01
NO_RUNS = "No finished run yet.\n"


def leaderboard(
    metrics: Iterable[Mapping[str, Any]], *, metric: str = "ndcg@10", certainty: Certainty | None = None
) -> pl.DataFrame:
    """Build the table of all readable runs from their metrics.json dicts; the others are logged and left out.

    Columns: rank, dataset, protocol, model, name, settings, seeds, members, search, commit, protocol_name, test metrics
    with their sample standard deviation ``_std``, counts, costs. ``rank`` is by the test ``metric`` within data set and
    protocol, null without the metric. ``model`` is ``name``, with the settings id where a protocol has several settings
    of it. Models with runs of all folds of a rolling split have another row under the id of all folds: means over folds
    with their deviation, and the number of ``folds``.
    ``certainty`` (see ``compute_insights``) adds the interval of ``metric`` as ``_low`` and ``_high``.
    """
    runs, problems = read_runs(metrics)
    for problem in problems:
        log.warning("%s", problem)
    cutoff = metric.partition("@")[2]
    names = sorted(  # the metric, the others at its cutoff, the rest
        dict.fromkeys([metric, *(name for run in runs for name in run.test_metrics if name not in COUNTS)]),
        key=lambda name: (name != metric, name.partition("@")[2] != cutoff),
    )
    protocol_names = names_by_protocol(runs)
    rows = [_row(group, names) | _bounds(group, metric, certainty or {}) for group in group_runs(runs)]
    rows += [_row(group, names) | _over_folds(group, names) for group in group_folds(runs)]
    rows = [row | {"protocol_name": protocol_names.get(row["protocol"])} for row in rows]
    if not rows:
        names = ["dataset", "protocol", "protocol_name", "model", "name"]
        return pl.DataFrame(schema={"rank": pl.UInt32, **dict.fromkeys(names, pl.String)})
    board = pl.DataFrame(rows, infer_schema_length=None).with_columns(
        pl.col(metric).cast(pl.Float64),
        pl.col("settings", "members", "search", "commit", "protocol_name").cast(pl.String),
        pl.col("folds").cast(pl.Int64),
    )
    part = ["dataset", "protocol"]
    board = board.with_columns(_folds=pl.col("folds").fill_null(0))
    rank, size = pl.col(metric).rank("min", descending=True).over(part).cast(pl.UInt32), pl.len().over(part)
    order = {
        "dataset": False,
        "_size": True,
        "_folds": True,
        "protocol": False,
        "rank": False,
        "model": False,
    }  # True: descending
    ranked = board.with_columns(rank=rank, _size=size).sort([*order], descending=[*order.values()], nulls_last=True)
    return ranked.select("rank", pl.exclude("rank", "_size", "_folds"))


def split_by_protocol(board: pl.DataFrame) -> list[tuple[str, str, pl.DataFrame]]:
    """Split a leaderboard into (data set, protocol id, rows), in the order of the board."""
    parts = board.partition_by(["dataset", "protocol"], maintain_order=True) if board.height else []
    return [(part["dataset"][0], part["protocol"][0], part) for part in parts]


def protocol_title(part: pl.DataFrame) -> str | None:
    """Return the name of the protocol of these rows; None without one, and in tables of older versions."""
    return part["protocol_name"][0] if "protocol_name" in part.columns else None


def to_markdown(board: pl.DataFrame, *, metric: str = "ndcg@10") -> str:
    """Format one Markdown table per data set and protocol, with the commit of each row; model names are escaped."""
    parts = []
    for dataset, protocol, part in split_by_protocol(board):
        head, rows = table_cells(part, metric)
        if "commit" in part.columns and part["commit"].null_count() < part.height:
            head = [*head, "commit"]
            rows = [[*row, commit or MISSING] for row, commit in zip(rows, part["commit"], strict=True)]
        name = protocol_title(part)
        title = f"{_escape_markdown(name)} (`{protocol}`)" if name else f"`{protocol}`"
        lines = [f"**{_escape_markdown(dataset)}**, protocol {title}", "", _markdown_row(head)]
        lines.append(_markdown_row(["---:", "---"] + ["---:"] * (len(head) - 2)))
        lines += [_markdown_row([_escape_markdown(value) for value in row]) for row in rows]
        if notes := footnotes(part):
            lines += ["", *map(_escape_markdown, notes)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n" if parts else NO_RUNS


def to_text(board: pl.DataFrame, *, metric: str = "ndcg@10", width: int = 100) -> str:
    """Format for a terminal of ``width`` columns, with as many metrics as fit, ``metric`` first."""
    parts = []
    for dataset, protocol, part in split_by_protocol(board):
        head, rows = table_cells(part, metric)
        table = [head, *rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        while sum(widths) + 2 * len(widths) > width and len(widths) > 5:
            for row in table:
                row.pop(-3)  # the last metric, in front of training time and seeds
            widths.pop(-3)
        alignment = [">", "<", *">" * (len(widths) - 2)]
        form = "  ".join(f"{{:{side}{size}}}" for side, size in zip(alignment, widths, strict=True))
        head_line, *lines = [form.format(*row) for row in table]
        rule = "─" * max(len(head_line), *map(len, lines))
        name = protocol_title(part)
        title = f"{dataset} · test · protocol {f'{name} ({protocol})' if name else protocol}"
        parts.append("\n".join([title, rule, head_line, rule, *lines, rule, *footnotes(part)]))
    return "\n\n".join(parts) + "\n" if parts else NO_RUNS


def table_cells(part: pl.DataFrame, metric: str) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of one protocol's table as text: rank, model, metrics, training time, seeds."""
    names, low, high = shown_metrics(part, metric), f"{metric}_low", f"{metric}_high"
    has_interval = low in part.columns and part[low].null_count() < part.height and names[:1] == [metric]
    rows = []
    for row in part.iter_rows(named=True):
        values = [mean_and_std(row, name) for name in names]
        if has_interval:
            values.insert(1, interval(row[low], row[high]))
        rank = MISSING if row["rank"] is None else str(row["rank"])
        rows.append([rank, row["model"], *values, duration(row.get("train_seconds")), str(row["seeds"])])
    titles = [metric_title(name) for name in names]
    if has_interval:
        titles.insert(1, INTERVAL)
    return ["#", "model", *titles, "training", "seeds"], rows


def shown_metrics(board: pl.DataFrame, metric: str = "ndcg@10") -> list[str]:
    """Return the metrics of printed tables: those at the cutoff of ``metric``, without duplicate columns.

    With one target per user recall equals the hit rate and MAP equals MRR; then only the latter are shown.
    """
    cutoff = metric.partition("@")[2]
    names = [f"{name}@{cutoff}" for name in METRICS if f"{name}@{cutoff}" in board.columns]
    for general, single in (("recall", "hit_rate"), ("map", "mrr")):
        if same_column(board, f"{general}@{cutoff}", f"{single}@{cutoff}"):
            names.remove(f"{general}@{cutoff}")
    if metric in names:
        names.insert(0, names.pop(names.index(metric)))
    cold, targets = (sum(_finite(board[name].to_list())) for name in ("cold_targets", "targets"))
    if targets and cold / targets >= COLD_SHARE:
        names[1:1] = [f"{name}@{cutoff}" for name in WARM_AND_COLD if f"{name}@{cutoff}" in board.columns]
    return names


def footnotes(part: pl.DataFrame) -> list[str]:
    """Return a line for each ensemble, for each model whose beam search missed targets, and on errors of beams."""
    rows = part.to_dicts()
    lines = [f"{row['model']}: {row[name]}" for name in ("members", "search") for row in rows if row.get(name)]
    for row in rows:
        if missed := row.get("missed_by_beam"):
            advice = "" if row.get("members") else f"; models.{row['name']}.beam widens it"
            reach = f"{count(missed)} of {count(row['targets'])}"
            lines.append(f"{row['model']}: the beam did not reach {reach} targets{advice}")
    return lines


def same_column(board: pl.DataFrame, a: str, b: str) -> bool:
    """Return whether both columns exist and are equal up to rounding."""
    return {a, b} <= {*board.columns} and bool(((board[a] - board[b]).abs().fill_null(0) < 1e-12).all())


def _row(group: RunGroup, names: list[str]) -> dict[str, Any]:
    runs = group.runs
    row: dict[str, Any] = {
        "dataset": group.dataset,
        "protocol": group.protocol,
        "model": group.model,
        "name": group.name,
        "settings": group.settings,
        "seeds": len(runs),
        "members": _members(runs),
        "search": _search_error(runs[-1].search),
        "commit": ", ".join(dict.fromkeys(run.commit for run in runs if run.commit)) or None,
    }
    metrics = [run.test_metrics for run in runs]
    row |= {name: _mean([values.get(name) for values in metrics]) for name in names}
    row |= {f"{name}_std": _std([values.get(name) for values in metrics]) for name in names}
    row |= {name: _mean([run.test.get(name) for run in runs]) for name in COUNTS}
    row |= {name: _mean([run.cost.get(name) for run in runs]) for name in (*TRAINING_COST, *INFERENCE_COST)}
    return row | {"folds": None, "finished": max(run.finished for run in runs)}


def _over_folds(group: RunGroup, names: list[str]) -> dict[str, Any]:
    """Return the means over folds, of each fold's mean over seeds, and their standard deviations over folds."""
    folds = sorted({run.fold for run in group.runs if run.fold is not None})
    by_fold = [[run.test_metrics for run in group.runs if run.fold == fold] for fold in folds]
    row: dict[str, Any] = {"folds": len(folds), "seeds": len({run.seed for run in group.runs})}
    for name in names:
        means = [_mean([values.get(name) for values in runs]) for runs in by_fold]
        row |= {name: _mean(means), f"{name}_std": _std(means)}
    return row


def _members(runs: Sequence[Run]) -> str | None:
    """Members of an ensemble with their mean weights over seeds."""
    ensembles = [run.ensemble for run in runs if run.ensemble]
    if not ensembles:
        return None
    weights = np.mean([ensemble["weights"] for ensemble in ensembles], axis=0)
    parts = [f"{weight:.2f} {name}" for name, weight in zip(ensembles[0]["members"], weights, strict=True)]
    is_adaptive = any((ensemble.get("adaptive") or {}).get("uses_gate") for ensemble in ensembles)
    rule = ", with weights of every user, here their means" if is_adaptive else ""
    return f"{' + '.join(parts)}, by {runs[0].settings.get('method')}{rule}"


def _search_error(search: Mapping[str, Any]) -> str | None:
    if not search:
        return None
    missed, users = percent(search["missed"]), percent(search["users"])
    beams = f"exact scores; {search.get('method', 'beam search')} with {search['beam']} beams"
    return f"{beams} would miss {missed} of the first {search['k']} items, for {users} of users"


def _bounds(group: RunGroup, metric: str, certainty: Certainty) -> dict[str, float | None]:
    if not certainty:
        return {}
    estimate = certainty.get(group.protocol, {}).get("estimates", {}).get(group.model, {})
    return {f"{metric}_{bound}": estimate.get(bound) for bound in ("low", "high")}


def _mean(values: Iterable[float | None]) -> float | None:
    return float(np.mean(finite)) if (finite := _finite(values)) else None


def _std(values: Iterable[float | None]) -> float | None:
    return float(np.std(finite, ddof=1)) if len(finite := _finite(values)) > 1 else None


def _finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and np.isfinite(value)]


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escape_markdown(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
