"""A row of the leaderboard: means over the seeds of one model under one protocol, and what is known beside them.

The leaderboard: a row per protocol, model and its settings, means over seeds, ranked within a protocol only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from recpipe.reporting.formatting import INTERVAL, MISSING, cell, interval, metric_title, percent, seconds
from recpipe.reporting.run_store import Row, Run, read_runs
from recpipe.reporting.run_store import rows as runs_together

COST = (
    "train_seconds",
    "seconds_per_epoch",
    "epochs",
    "parameters",
    "peak_memory_mib",
    "inference_users_per_second",
    "inference_latency_ms_p50",
    "inference_latency_ms_p95",
)
COUNTS = ("users", "targets", "unrankable", "cold_targets")


def metric_names(found: list[Run], metric: str) -> list[str]:
    """The chosen metric, the others at its cut-off, the rest."""
    names = list(
        dict.fromkeys([metric, *(name for run in found for name in run.measured if name not in COUNTS)])
    )
    return sorted(
        names, key=lambda name: (name != metric, name.partition("@")[2] != metric.partition("@")[2])
    )


def row_of(together: Row, names: list[str]) -> dict[str, Any]:
    group = together.runs
    row: dict[str, Any] = {
        "dataset": together.dataset,
        "protocol": together.protocol,
        "model": together.model,
        "name": together.name,
        "settings": together.settings,
        "seeds": len(group),
        "members": _members(group),
        "search": _searched(group[-1].search),
        "commit": _commits(group),
    }
    measured = [run.measured for run in group]
    row |= {name: _mean([each.get(name) for each in measured]) for name in names}
    row |= {f"{name}_std": _std([each.get(name) for each in measured]) for name in names}
    row |= {name: _mean([run.test.get(name) for run in group]) for name in COUNTS}
    row |= {name: _mean([run.cost.get(name) for run in group]) for name in COST}
    return row | {"finished": max(run.finished for run in group)}


def _members(group: Sequence[Run]) -> str | None:
    """Of an ensemble its members with their weights, on average over seeds."""
    told = [run.ensemble for run in group if run.ensemble]
    if not told:
        return None
    weights = np.mean([each["weights"] for each in told], axis=0)
    parts = [f"{weight:.2f} {name}" for name, weight in zip(told[0]["members"], weights, strict=True)]
    return f"{' + '.join(parts)}, by {group[0].settings.get('method')}"


def _commits(group: Sequence[Run]) -> str | None:
    """Of the code that each run was made by; + where it had changes that no commit has."""
    known = dict.fromkeys(run.commit for run in group if run.commit)
    return ", ".join(known) or None


def _searched(found: Mapping[str, Any]) -> str | None:
    """What a beam search would lose."""
    if not found:
        return None
    return (
        f"scored exactly; a beam of {found['beam']} would miss {percent(found['missed'])} of the first {found['k']} "
        f"items, for {percent(found['users'])} of users"
    )


def bounds(together: Row, metric: str, certainty: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    if not certainty:
        return {}
    found = certainty.get(together.protocol, {}).get("estimates", {}).get(together.model, {})
    return {f"{metric}_{bound}": found.get(bound) for bound in ("low", "high")}


def _mean(values: list[float | None]) -> float | None:
    known = known_of(values)
    return float(np.mean(known)) if known else None


def _std(values: list[float | None]) -> float | None:
    known = known_of(values)
    return float(np.std(known, ddof=1)) if len(known) > 1 else None


def known_of(values: list[float | None]) -> list[float]:
    return [value for value in values if value is not None and np.isfinite(value)]


logger = logging.getLogger(__name__)

SHOWN = (
    "recall",
    "hit_rate",
    "ndcg",
    "mrr",
    "map",
    "coverage",
)  # of these the ones that runs have, in this order
# Shown too, where items that training never saw are at least so much of the targets.
BY_TRAINING = ("warm_recall", "cold_recall")
COLD_SHARE = 0.01


class ProtocolMismatch(ValueError):
    """Two numbers that were not measured in the same way."""


def leaderboard(
    runs: Iterable[Mapping[str, Any]],
    *,
    metric: str = "ndcg@10",
    certainty: Mapping[str, Mapping[str, Any]] | None = None,
) -> pl.DataFrame:
    """All readable runs: rank, dataset, protocol, model, name, settings, seeds, members, search, commit, test metrics,
    `_std`, counts, costs.

    `rank` starts again at 1 in every dataset and protocol and follows the test `metric`; a model without it
    has no rank and comes last. Means are over the latest run of each seed; `_std` is the sample standard
    deviation, null for one seed. Runs with other settings are another row; `model` is `name` with the id of
    the settings where a protocol has several of one model. With ``certainty`` (see `insights`) the chosen metric has
    the bounds of its interval, `_low` and `_high`. Runs that cannot be read are logged and left out.
    """
    found, problems = read_runs(runs)
    for problem in problems:
        logger.warning("%s", problem)
    names = metric_names(found, metric)
    rows = [row_of(row, names) | bounds(row, metric, certainty or {}) for row in runs_together(found)]
    if not rows:
        return pl.DataFrame(
            schema={"rank": pl.UInt32, **dict.fromkeys(("dataset", "protocol", "model", "name"), pl.String)}
        )
    board = pl.DataFrame(rows, infer_schema_length=None)
    group_columns = ["dataset", "protocol"]
    rank = pl.col(metric).rank("min", descending=True).over(group_columns).cast(pl.UInt32).alias("rank")
    size = pl.len().over(group_columns)
    return (
        board.with_columns(
            pl.col(metric).cast(pl.Float64), pl.col("settings", "members", "search", "commit").cast(pl.String)
        )
        .with_columns(rank, size.alias("_size"))
        .sort(
            ["dataset", "_size", "protocol", "rank", "model"],
            descending=[False, True, False, False, False],
            nulls_last=True,
        )
        .select("rank", *board.columns)
    )


def compare(a: Mapping[str, Any], b: Mapping[str, Any], *, metric: str = "ndcg@10") -> float:
    """Test `metric` of run `a` minus that of run `b` (metrics.json dicts).

    Raises ProtocolMismatch, which names the fields that differ, unless both protocols are the same.
    """
    mine, theirs = a["protocol"], b["protocol"]
    if mine["id"] != theirs["id"]:
        names = sorted(name for name in {*mine, *theirs} - {"id"} if mine.get(name) != theirs.get(name))
        fields = "; ".join(f"{name}: {mine.get(name)!r} against {theirs.get(name)!r}" for name in names)
        raise ProtocolMismatch(
            f"{a['model']} (protocol {mine['id']}) and {b['model']} (protocol {theirs['id']}) cannot be "
            f"compared: {fields or 'their protocols differ'}. Evaluate both under one protocol"
        )
    return float(a["test"][metric]) - float(b["test"][metric])


def groups(board: pl.DataFrame) -> list[tuple[str, str, pl.DataFrame]]:
    """(dataset, protocol id, its rows) in the order of the board: what may be compared stands together."""
    if not board.height:
        return []
    parts = board.partition_by(["dataset", "protocol"], maintain_order=True)
    return [(part["dataset"][0], part["protocol"][0], part) for part in parts]


def shown_metrics(board: pl.DataFrame, metric: str = "ndcg@10") -> list[str]:
    """The metrics worth a column where room is short: those at the cut-off of `metric`, none twice.

    With one target per user recall equals the hit rate and MAP equals MRR; then only the latter are kept.
    """
    cutoff = metric.partition("@")[2]
    names = [f"{name}@{cutoff}" for name in SHOWN if f"{name}@{cutoff}" in board.columns]
    for general, single in (("recall", "hit_rate"), ("map", "mrr")):
        if same_column(board, f"{general}@{cutoff}", f"{single}@{cutoff}"):
            names.remove(f"{general}@{cutoff}")
    if metric in names:
        names.insert(0, names.pop(names.index(metric)))
    if _cold_share(board) >= COLD_SHARE:
        names[1:1] = [f"{name}@{cutoff}" for name in BY_TRAINING if f"{name}@{cutoff}" in board.columns]
    return names


def to_markdown(board: pl.DataFrame, *, metric: str = "ndcg@10") -> str:
    """One Markdown table per dataset and protocol, with the commit of each row; model names are escaped."""
    parts = []
    for dataset, protocol, part in groups(board):
        head, rows = table_cells(part, metric)
        if "commit" in part.columns and part["commit"].null_count() < part.height:
            head = [*head, "commit"]
            rows = [[*row, made or MISSING] for row, made in zip(rows, part["commit"], strict=True)]
        lines = [
            f"**{_md(dataset)}**, protocol `{protocol}`",
            "",
            _line(head),
            _line(["---:", "---"] + ["---:"] * (len(head) - 2)),
        ]
        lines += [_line([_md(value) for value in row]) for row in rows]
        lines += ["", *(_md(line) for line in made_of(part))] if made_of(part) else []
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n" if parts else "No finished run yet.\n"


def to_text(board: pl.DataFrame, *, metric: str = "ndcg@10", width: int = 100) -> str:
    """The same for a terminal `width` columns wide: as many metrics as fit, the chosen one first."""
    parts = []
    for dataset, protocol, part in groups(board):
        head, rows = table_cells(part, metric)
        table = [head, *rows]
        widths = [max(len(row[column]) for row in table) for column in range(len(head))]
        while sum(widths) + 2 * len(widths) > width and len(widths) > 5:
            for row in table:
                row.pop(-3)  # the last metric: seconds and the number of seeds stay
            widths.pop(-3)
        lines = [
            "  ".join(
                _pad(value, size, column)
                for column, (value, size) in enumerate(zip(row, widths, strict=True))
            )
            for row in table
        ]
        rule = "─" * max(map(len, lines))
        parts.append(
            "\n".join(
                [
                    f"{dataset} · test · protocol {protocol}",
                    rule,
                    lines[0],
                    rule,
                    *lines[1:],
                    rule,
                    *made_of(part),
                ]
            )
        )
    return "\n\n".join(parts) + "\n" if parts else "No finished run yet.\n"


def table_cells(part: pl.DataFrame, metric: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows of one protocol's table, as text: rank, model, metrics, training time, seeds.

    Behind the chosen metric stands its interval, where there is any.
    """
    names = shown_metrics(part, metric)
    low, high = f"{metric}_low", f"{metric}_high"
    sure = low in part.columns and part[low].null_count() < part.height and names[:1] == [metric]
    rows = []
    for row in part.iter_rows(named=True):
        values = [cell(row, name) for name in names]
        if sure:
            values.insert(1, interval(row[low], row[high]))
        place = MISSING if row["rank"] is None else str(row["rank"])
        rows.append([place, row["model"], *values, seconds(row.get("train_seconds")), str(row["seeds"])])
    titles = [metric_title(name) for name in names]
    if sure:
        titles.insert(1, INTERVAL)
    return ["#", "model", *titles, "training", "seeds"], rows


def made_of(part: pl.DataFrame) -> list[str]:
    """A line for every ensemble, and for every model whose exact lists a beam would miss something of."""
    return [
        f"{row['model']}: {row[name]}"
        for name in ("members", "search")
        if name in part.columns
        for row in part.filter(pl.col(name).is_not_null()).iter_rows(named=True)
    ]


def same_column(board: pl.DataFrame, a: str, b: str) -> bool:
    """Whether both metrics are there and equal for every model, but for rounding."""
    if not {a, b} <= set(board.columns):
        return False
    return bool(((board[a] - board[b]).abs().fill_null(0) < 1e-12).all())


def _cold_share(board: pl.DataFrame) -> float:
    """Of the targets of the board's runs, as many as training never saw."""
    cold, targets = (sum(known_of(board[name].to_list())) for name in ("cold_targets", "targets"))
    return cold / targets if targets else 0.0


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _md(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _pad(value: str, size: int, column: int) -> str:
    return value.ljust(size) if column == 1 else value.rjust(size)
