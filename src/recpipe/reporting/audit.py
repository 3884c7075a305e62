"""Section of the report on the audit of a data set: verdicts in words, measures, models on parts of the targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go
import polars as pl

from recpipe.reporting.figures import TEXTS, Table
from recpipe.reporting.figures.audit import audit_figures, half_metric
from recpipe.reporting.formatting import MISSING, count, decimals, metric_title, number, percent

REFERENCES = ("hop_graph", "markov", "popular")  # models that only count, the first on the board is compared
COLUMNS: dict[str, list[str]] = TEXTS["audit_columns"]  # head and meaning by prefix or suffix of a metric
WARN_TIES, WARN_SAME_DAY, WARN_REPEATS = 0.05, 0.5, 0.01


@dataclass(frozen=True)
class AuditSection:
    """Sentences, measures as (name, meaning, value), models on parts of the targets, figures by name."""

    verdicts: list[str] = field(default_factory=list)
    headlines: list[str] = field(default_factory=list)  # the sentences for the terminal
    measures: list[tuple[str, str, str]] = field(default_factory=list)
    models: Table | None = None
    meanings: list[list[str]] = field(default_factory=list)  # of the columns of ``models``
    figures: dict[str, go.Figure] = field(default_factory=dict)


def audit_section(audit: Mapping[str, Any] | None, board: pl.DataFrame, *, metric: str) -> AuditSection | None:
    """Build the section from the JSON of ``recpipe.evaluation.audit`` and one protocol of the leaderboard."""
    if not audit:
        return None
    models, meanings = models_table(board, metric)
    sentences, reference = verdicts(audit), reference_verdict(board, metric)
    return AuditSection(
        [*sentences, *reference],
        [*sentences[:1], *reference],
        measures_table(audit["measures"]),
        models,
        meanings,
        audit_figures(audit, board, metric=metric),
    )


def verdicts(audit: Mapping[str, Any]) -> list[str]:
    """Say in sentences what the measures mean, without those of little consequence."""
    measures = audit["measures"]
    transitions, popularity = measures["transitions"], measures["popularity"]
    lines = []
    if transitions["generalised"] is not None:
        lines.append(
            f"{percent(transitions['generalised'])} of the test targets never follow the last item of their user in "
            f"the training data and need generalisation; {percent(transitions['memorised'])} can be memorised."
        )
    if popularity["top_10_percent"] is not None:
        lines.append(
            f"{percent(popularity['top_10_percent'])} of the test targets are among the 10\u202f% most popular items; "
            f"the median target is more popular than {percent(popularity['median_percentile'])} of the catalogue."
        )
    if (measures["repeats"] or 0) >= WARN_REPEATS:
        lines.append(f"{percent(measures['repeats'])} of the test targets are in the history of their user.")
    return lines + _time_verdicts(measures) + list(audit["notes"])


def _time_verdicts(measures: Mapping[str, Any]) -> list[str]:
    lines, time, day, ties = [], measures["global_time"], measures["same_day"], measures["ties"]
    if time and time["users_with_later"] is not None:
        if time["users_with_later"]:
            lines.append(
                f"For {percent(time['users_with_later'])} of the test users the training data have events of other "
                f"users later than their target, {percent(time['later_share'])} of all training events on average: a "
                "model can know the future. A temporal split avoids this."
            )
        else:
            lines.append("No training event is later than a test target: nothing leaks over time.")
    if day and (day["last_event"] or 0) >= WARN_SAME_DAY:
        lines.append(
            f"{percent(day['last_event'])} of the test targets are of the same day as the event before: the split asks "
            "for the rest of a visit."
        )
    if ties and (ties["last_events"] or 0) >= WARN_TIES:
        lines.append(
            f"{percent(ties['last_events'])} of the test targets have the time of the event before, so that their "
            "order is arbitrary; the pipeline ties measures what it changes."
        )
    return lines


def reference_verdict(board: pl.DataFrame, metric: str) -> list[str]:
    """Compare the first of ``REFERENCES`` on the board with the best model that is no variant of them."""
    rows = [row for row in board.to_dicts() if row.get(metric) is not None]
    reference = next((row for name in REFERENCES for row in rows if row["name"] == name), None)
    best = next((row for row in rows if not row["name"].startswith(REFERENCES)), None)
    if reference is None or best is None or not best[metric]:
        return []
    share = percent(reference[metric] / best[metric])
    return [
        f"{reference['model']}, without trained parameters, reaches {share} of the {metric_title(metric)} of the best "
        f"other model, {best['model']} ({decimals(reference[metric])} and {decimals(best[metric])})."
    ]


def measures_table(measures: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, meaning and value of every measure that the texts name; unknown values as a dash."""
    rows = []
    for key, (name, meaning) in TEXTS["audit_measures"].items():
        block, _, part = key.partition("-")
        value = (measures.get(block) or {}).get(part) if part else measures.get(block)
        rows.append((name, meaning, _value(part, value)))
    return rows


def _value(name: str, value: float | None) -> str:
    if value is None:
        return MISSING
    if name == "successors":
        return number(round(float(value), 1))
    return count(value) if isinstance(value, int) else percent(value)


def models_table(board: pl.DataFrame, metric: str) -> tuple[Table | None, list[list[str]]]:
    """Return the metric of each model, best first, on both halves of the targets and debiased, and the meanings.

    None for runs of older versions, which have no such metrics.
    """
    stem, _, cutoff = half_metric(metric).partition("@")
    names = {
        "memorised": f"memorised_{stem}@{cutoff}",
        "generalised": f"generalised_{stem}@{cutoff}",
        "downsampled": f"debiased_{stem}_downsampled@{cutoff}",
        "ips": f"debiased_{stem}_ips@{cutoff}",
    }
    names = {key: name for key, name in names.items() if name in board.columns and board[name].is_not_null().any()}
    if not names:
        return None, []
    keys = ["all", *names]
    columns = [f"{stem}@{cutoff}", *names.values()]
    rows = [
        [row["model"], *(MISSING if row[name] is None else decimals(row[name]) for name in columns)]
        for row in board.to_dicts()
    ]
    return (["model", *(COLUMNS[key][0] for key in keys)], rows), [COLUMNS[key] for key in keys]
