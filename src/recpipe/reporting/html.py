"""HTML page of a data set: one file that loads nothing from the network; Plotly's script is embedded with gzip."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import plotly.offline
import polars as pl

from recpipe.reporting import formatting
from recpipe.reporting.audit import AuditSection
from recpipe.reporting.examples import Example
from recpipe.reporting.figures import CAPTIONS, TEXTS, Table
from recpipe.reporting.figures.geometry import GeometrySection
from recpipe.reporting.figures.insights import TIES, certainty_table, insight_figures, lists_table
from recpipe.reporting.figures.runs import Frame, data_figures, drawn_protocol, run_figures
from recpipe.reporting.figures.semantic_ids import IdSection
from recpipe.reporting.figures.studies import StudySection
from recpipe.reporting.formatting import MISSING, count, date_range, day, duration, number, percent
from recpipe.reporting.leaderboard import COUNTS, footnotes, leaderboard, protocol_title, split_by_protocol, table_cells
from recpipe.reporting.runs import Run, read_runs
from recpipe.reporting.tuning import TuningSection

DATASET_FIELDS = ("title", "name", "homepage", "licence", "citation")


def render_page(
    dataset: Mapping[str, Any],
    metrics: Iterable[Mapping[str, Any]],
    *,
    profile: Mapping[str, Any] | None = None,
    steps: Frame | None = None,
    curves: Mapping[str, Frame] | None = None,
    examples: Sequence[Example] = (),
    semantic_ids: Sequence[IdSection] = (),
    insights: Mapping[str, Any] | None = None,
    studies: StudySection | None = None,
    tuning: TuningSection | None = None,
    geometry: GeometrySection | None = None,
    audit: AuditSection | None = None,
    notes: Sequence[str] = (),
    metric: str = "ndcg@10",
    created: datetime | None = None,
) -> str:
    """Render the page; sections without data say so or are left out. Everything from outside is escaped.

    ``dataset`` is the configuration of the data set, ``notes`` are warnings about the data; others as in the figures.
    """
    metrics, insights, studies = list(metrics), insights or {}, studies or StudySection()
    tuning = tuning or TuningSection()
    runs, problems = read_runs(metrics)
    board = leaderboard(metrics, metric=metric, certainty=insights.get("certainty"))
    page_board = board.filter(pl.col("protocol") == insights.get("protocol", ""))
    page_protocol = drawn_protocol(board, insights.get("protocol"))
    id_figures = [(section, name) for section in semantic_ids for name in section.figures]
    figures = {
        **run_figures(metrics, curves=curves, metric=metric, protocol=insights.get("protocol")),
        **data_figures(profile, steps),
        **insight_figures(insights, page_board, metric=metric),
        **{f"{section.name}_{name}": section.figures[name] for section, name in id_figures},
        **studies.figures,
        **tuning.figures,
        **(geometry.figures if geometry else {}),
        **(audit.figures if audit else {}),
    }
    id_captions = {f"{section.name}_{name}": CAPTIONS[name] for section, name in id_figures}
    text = _template().render(
        dataset={name: dataset.get(name) for name in DATASET_FIELDS},
        created=day(int((created or datetime.now(UTC)).timestamp())),
        lead=_lead(board, metric, page_protocol),
        page_protocol=page_protocol,
        boards=[_board(protocol, part, runs, metric) for _, protocol, part in split_by_protocol(board)],
        problems=[*problems, *insights.get("problems", ())],
        notes=notes,
        metric=metric,
        segments=insights.get("segments"),
        certainty=certainty_table(insights, page_board),
        ties_column=TIES,
        comparison=insights.get("certainty", {}).get(insights.get("protocol"), {}),
        lists=lists_table(insights, page_board),
        figures={name: json.loads(figure.to_json()) for name, figure in figures.items()},
        captions=CAPTIONS | id_captions | studies.captions | tuning.captions,
        studies=studies,
        tuning=tuning,
        facts=_facts(profile) if profile else [],
        steps=_steps(steps),
        sizes=sizes_table(steps),
        examples=examples,
        semantic_ids=semantic_ids,
        geometry=geometry,
        audit=audit,
        runs=[_run(run) for run in runs],
        versions=_versions(runs),
        plotly=_compressed_plotly() if figures else "",
        formatting=formatting,
    )
    return text.lstrip()


def sizes_table(steps: Frame | None) -> Table | None:
    """Compare the raw log with the data after all steps; None with fewer than two steps."""
    table = _step_table(steps)
    if len(table) < 2:
        return None
    raw, final = _sizes(table[0]), _sizes(table[-1])
    return ["", "raw log", "after all steps"], [[name, raw[name], final[name]] for name in raw]


def _sizes(row: dict[str, Any]) -> dict[str, str]:
    pairs = (row["users"] or 0) * (row["items"] or 0)
    return {
        "interactions": count(row["rows"]),
        "users": count(row["users"]),
        "items": count(row["items"]),
        "interactions per user-item pair": percent(row["rows"] / pairs if pairs else None),
        "median interactions per user": number(row.get("events_median")),
        "mean interactions per user": number(row.get("events_mean")),
        "time span": date_range(row.get("first_timestamp"), row.get("last_timestamp")),
    }


def _step_table(steps: Frame | None) -> list[dict[str, Any]]:
    """Rows of the step table; those of older versions have no median."""
    return [] if steps is None else pl.DataFrame(steps).sort("step").to_dicts()


def _steps(steps: Frame | None) -> list[dict[str, str]]:
    """Rows of the step table as text."""
    return [
        {
            "step": str(row["name"]),
            "detail": _step_arguments(row.get("detail")),
            **{name: count(row[name]) for name in ("rows", "users", "items")},
            "time": date_range(row.get("first_timestamp"), row.get("last_timestamp")),
            "per_user": " / ".join(number(row.get(f"events_{name}")) for name in ("min", "mean", "max")),
        }
        for row in _step_table(steps)
    ]


def _step_arguments(text: str | None) -> str:
    """JSON arguments of a step as ``name value``."""
    try:
        arguments = json.loads(text or "{}")
    except ValueError:
        return str(text)
    return _setting(arguments) if isinstance(arguments, dict) else str(text)


def _setting(value: object) -> str:
    """A value of the configuration as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_setting(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_setting, value)) or "none"
    return MISSING if value is None or value == "" else str(value)


def _lead(board: pl.DataFrame, metric: str, protocol: str | None) -> dict[str, Any] | None:
    """First and second model under the protocol of the page, and all models that share the first rank."""
    rows = [row for row in board.to_dicts() if row["protocol"] == protocol and row["rank"] is not None]
    if not rows:
        return None
    values = [formatting.mean_and_std(row, metric) for row in rows[:2]]
    best = [{**row, "value": value} for row, value in zip(rows, values, strict=False)]
    ties = [row["model"] for row in rows if row["rank"] == 1]
    second = best[1] if len(best) > 1 else None
    name = f"{best[0]['protocol_name'] or ''} {protocol}".strip() if board["protocol"].n_unique() > 1 else ""
    lead = {"metric": formatting.metric_title(metric), "ties": ties, "first": best[0], "second": second}
    return {**lead, "protocol": name}


def _board(protocol: str, part: pl.DataFrame, runs: list[Run], metric: str) -> dict[str, Any]:
    """The table of one protocol, its fields with their meanings, and its counts."""
    head, rows = table_cells(part, metric)
    same = (run.protocol for run in runs if protocol in (run.protocol_id, run.fold is not None and run.folds_id))
    fields = dict(next(same))
    if part["folds"][0] is not None:
        fields["fold"] = f"all {part['folds'][0]}"
    for name in ("id", "name"):
        fields.pop(name, None)
    meanings = TEXTS["protocol_fields"]
    return {
        "protocol": protocol,
        "name": protocol_title(part),
        "head": head,
        "rows": rows,
        "fields": [(name, _setting(value), meanings.get(name, "")) for name, value in fields.items()],
        "counts": {name: part[name].max() for name in COUNTS if name in part.columns},
        "footnotes": footnotes(part),
    }


def _facts(profile: Mapping[str, Any]) -> list[tuple[str, str]]:
    per_user, popularity, ties = (profile.get(name) or {} for name in ("events_per_user", "popularity", "tied"))
    facts = [
        ("interactions", count(profile.get("rows"))),
        ("users", count(profile.get("users"))),
        ("items", count(profile.get("items"))),
        ("density (user-item pairs with interactions)", percent(profile.get("density"))),
        ("median interactions per user", count(per_user.get("median"))),
        ("interactions with the top 10\u202f% of items", percent(popularity.get("top_10_percent"))),
        ("interactions that repeat a user-item pair", percent(profile.get("repeats"))),
        ("users whose last item is a repeat", percent(profile.get("last_repeats"))),
        ("copies (same user, item and time)", count(profile.get("copies"))),
        ("interactions before 1980", count(profile.get("early"))),
        ("users with a tie at the last timestamp", percent(ties.get("last"))),
        ("first day", day(profile.get("first_timestamp")) or MISSING),
        ("last day", day(profile.get("last_timestamp")) or MISSING),
    ]
    return [(name, value) for name, value in facts if value != MISSING]


def _run(run: Run) -> dict[str, str]:
    cost = run.cost
    memory = cost.get("peak_memory_mib")
    latency = (cost.get(f"inference_latency_ms_p{quantile}") for quantile in (50, 95))
    return {
        "model": run.model,
        "seed": str(run.seed),
        "protocol": run.protocol_id,
        "settings": run.settings_id or MISSING,
        "epochs": count(cost.get("epochs")),
        "training": duration(cost.get("train_seconds")),
        "per epoch": duration(cost.get("seconds_per_epoch")),
        "tokens / s": count(cost.get("tokens_per_second")),
        "memory": MISSING if memory is None else f"{count(memory)} MiB",
        "parameters": count(cost.get("parameters")),
        "users / s": count(cost.get("inference_users_per_second")),
        "latency p50 / p95, ms": formatting.latencies(*latency),
        "finished": run.finished[:16].replace("T", " ") or MISSING,
        "commit": (run.commit or MISSING)[:10],
    }


def _versions(runs: list[Run]) -> list[tuple[str, str]]:
    """Versions of the software of all runs, several where runs differ."""
    names = sorted({name for run in runs for name in run.versions})
    values = {name: dict.fromkeys(str(run.versions[name]) for run in runs if name in run.versions) for name in names}
    return [(name, ", ".join(versions)) for name, versions in values.items()]


@lru_cache(maxsize=1)
def _compressed_plotly() -> str:
    data = gzip.compress(plotly.offline.get_plotlyjs().encode(), compresslevel=9, mtime=0)
    return base64.b64encode(data).decode("ascii")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")
