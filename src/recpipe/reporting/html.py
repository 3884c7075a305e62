"""The log before cleaning and sampling beside what is left of it, from the step table alone.

One HTML page per data set that holds all it shows: no network, no second file, for any screen and paper.

Plotly's script travels inside it compressed (a third of its size) and is unpacked by the browser.
"""

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

from recpipe.reporting import formatting as wording
from recpipe.reporting.captions import CAPTIONS, GEOMETRY, IDS, PROTOCOL
from recpipe.reporting.examples import Example
from recpipe.reporting.figures.insights import insight_figures
from recpipe.reporting.figures.runs import figures
from recpipe.reporting.formatting import count, number, percent, span
from recpipe.reporting.geometry import Section as Geometry
from recpipe.reporting.insights import Table, certainty_table, lists_table
from recpipe.reporting.leaderboard import groups, leaderboard, made_of, table_cells
from recpipe.reporting.run_store import Run, read_runs
from recpipe.reporting.semantic_ids import Section
from recpipe.reporting.studies import Studies

HEAD = ["", "raw log", "as models see it"]


def before_and_after(steps: Any) -> Table | None:
    """Sizes of the first and the last row of the step table, side by side; None where there are not two.

    The density counts repeated pairs each time, so that it can be had without looking at pairs; a median is missing in
    tables of before there was one.
    """
    table = steps if isinstance(steps, pl.DataFrame) else pl.DataFrame([] if steps is None else steps)
    if table.height < 2:
        return None
    table = table.sort("step")
    ends = [table.row(at, named=True) for at in (0, -1)]
    columns = [_sizes(row) for row in ends]
    return HEAD, [[name, *(sizes[name] for sizes in columns)] for name in columns[0]]


def _sizes(row: dict[str, Any]) -> dict[str, str]:
    pairs = (row["users"] or 0) * (row["items"] or 0)
    return {
        "interactions": count(row["rows"]),
        "users": count(row["users"]),
        "items": count(row["items"]),
        "interactions over possible user-item pairs": percent(row["rows"] / pairs if pairs else None),
        "interactions of the median user": number(row.get("events_median")),
        "of the average user": number(row.get("events_mean")),
        "from, to": span(row.get("first_timestamp"), row.get("last_timestamp")),
    }


PER_USER = ("events_min", "events_mean", "events_max")
COUNTS = ("users", "targets", "unrankable", "cold_targets")


def page(
    dataset: Mapping[str, Any],
    runs: Iterable[Mapping[str, Any]],
    *,
    profile: Mapping[str, Any] | None = None,
    steps: Any = None,
    curves: Mapping[str, Any] | None = None,
    examples: Sequence[Example] = (),
    semantic_ids: Sequence[Section] = (),
    insights: Mapping[str, Any] | None = None,
    studies: Studies | None = None,
    geometry: Geometry | None = None,
    notes: Sequence[str] = (),
    metric: str = "ndcg@10",
    made_at: datetime | None = None,
) -> str:
    """The page as text; every part without data says so in its place.

    `dataset` is its block of the conf, of which title, homepage, licence and citation are read; else as in
    `figures`; `semantic_ids` as `semantic_ids.section` makes them; `insights` and `studies` as the functions of that
    name; `geometry` as `geometry_tables.section`; `notes` are warnings that stand above the data. Everything that comes
    from outside is escaped.
    """
    runs, closer = list(runs), insights or {}
    found, problems = read_runs(runs)
    board = leaderboard(runs, metric=metric, certainty=closer.get("certainty"))
    judged = board.filter(pl.col("protocol") == closer.get("protocol", ""))
    drawn = figures(runs, profile=profile, steps=steps, curves=curves, metric=metric)
    drawn |= insight_figures(closer, judged, metric=metric)
    of_ids = {
        f"{each.name}_{name}": (IDS[name], drawing)
        for each in semantic_ids
        for name, drawing in each.figures.items()
    }
    drawn |= {name: drawing for name, (_, drawing) in of_ids.items()}
    drawn |= {} if studies is None else studies.figures
    drawn |= {} if geometry is None else geometry.figures
    words = CAPTIONS | GEOMETRY | {name: caption for name, (caption, _) in of_ids.items()}
    text = _template().render(
        dataset={name: dataset.get(name) for name in ("title", "name", "homepage", "licence", "citation")},
        made_at=wording.day(int((made_at or datetime.now(UTC)).timestamp())),
        lead=_lead(board, metric),
        boards=[_board(protocol, part, found, metric) for _, protocol, part in groups(board)],
        problems=[*problems, *closer.get("problems", ())],
        notes=notes,
        metric=metric,
        segments=closer.get("segments"),
        certainty=certainty_table(closer, judged),
        baseline=_baseline(closer),
        lists=lists_table(closer, judged),
        figures={name: json.loads(figure.to_json()) for name, figure in drawn.items()},
        captions=words if studies is None else words | studies.words,
        studies=studies,
        facts=_facts(profile) if profile else [],
        steps=_steps(steps),
        sizes=before_and_after(steps),
        examples=examples,
        semantic_ids=semantic_ids,
        geometry=geometry,
        runs=[_run(run) for run in found],
        versions=_versions(found),
        plotly=_packed_plotly() if drawn else "",
        wording=wording,
    )
    return text.lstrip()


def _lead(board: pl.DataFrame, metric: str) -> dict[str, Any] | None:
    """The first and the second of the largest protocol, and all that share the first place where several do."""
    if not board.height:
        return None
    part = groups(board)[0][2].filter(pl.col("rank").is_not_null()).to_dicts()
    if not part:
        return None
    best = [
        {"model": row["model"], "value": wording.cell(row, metric), "seeds": row["seeds"]} for row in part[:2]
    ]
    return {
        "metric": wording.metric_title(metric),
        "level": [row["model"] for row in part if row["rank"] == 1],
        "first": best[0],
        "second": best[1] if len(best) > 1 else None,
    }


def _baseline(closer: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the models of the page's protocol were compared with, and how."""
    found: Mapping[str, Any] = closer.get("certainty", {}).get(closer.get("protocol"), {})
    return found


def _board(protocol: str, part: pl.DataFrame, found: list[Run], metric: str) -> dict[str, Any]:
    """One protocol's table, its fields with their meaning, and what was counted."""
    head, rows = table_cells(part, metric)
    fields = next(run.protocol for run in found if run.protocol_id == protocol)
    explained = [(name, _plain(fields[name]), PROTOCOL.get(name, "")) for name in fields if name != "id"]
    counts = {name: part[name].max() for name in COUNTS if name in part.columns}
    return {
        "protocol": protocol,
        "head": head,
        "rows": rows,
        "fields": explained,
        "counts": counts,
        "made_of": made_of(part),
    }


def _facts(profile: Mapping[str, Any]) -> list[tuple[str, str]]:
    per_user, popularity, tied = (
        profile.get(name) or {} for name in ("events_per_user", "popularity", "tied")
    )
    first, last = wording.day(profile.get("first_timestamp")), wording.day(profile.get("last_timestamp"))
    facts = [
        ("interactions", wording.count(profile.get("rows"))),
        ("users", wording.count(profile.get("users"))),
        ("items", wording.count(profile.get("items"))),
        ("of the user-item table is filled", wording.percent(profile.get("density"))),
        ("interactions of the median user", wording.count(per_user.get("median"))),
        (
            "of interactions go to the top 10\u202f% of items",
            wording.percent(popularity.get("top_10_percent")),
        ),
        ("of interactions repeat a user-item pair", wording.percent(profile.get("repeats"))),
        ("of users have a tie at their last second", wording.percent(tied.get("last"))),
        ("first day", first or wording.MISSING),
        ("last day", last or wording.MISSING),
    ]
    return [fact for fact in facts if fact[1] != wording.MISSING]


def _steps(steps: Any) -> list[dict[str, str]]:
    """The step table as text; arguments come as JSON and are written as `name value`."""
    if steps is None:
        return []
    table = steps if isinstance(steps, pl.DataFrame) else pl.DataFrame(steps)
    return [
        {
            "step": str(row["name"]),
            "detail": _detail(row.get("detail")),
            **{name: wording.count(row[name]) for name in ("rows", "users", "items")},
            "time": wording.span(row.get("first_timestamp"), row.get("last_timestamp")),
            "per_user": " / ".join(wording.number(row.get(name)) for name in PER_USER) or wording.MISSING,
        }
        for row in table.sort("step").iter_rows(named=True)
    ]


def _detail(text: str | None) -> str:
    try:
        fields = json.loads(text or "{}")
    except ValueError:
        return str(text)
    return (
        ", ".join(f"{name} {_plain(value)}" for name, value in fields.items())
        if isinstance(fields, dict)
        else str(text)
    )


def _plain(value: Any) -> str:
    """A conf value as a reader writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(each) for each in value) or "none"
    return wording.MISSING if value is None or value == "" else str(value)


def _run(run: Run) -> dict[str, str]:
    cost = run.cost
    memory, speed = cost.get("peak_memory_mib"), cost.get("tokens_per_second")
    return {
        "model": run.model,
        "seed": str(run.seed),
        "protocol": run.protocol_id,
        "settings": run.settings_id or wording.MISSING,
        "epochs": wording.count(cost.get("epochs")),
        "training": wording.seconds(cost.get("train_seconds")),
        "per epoch": wording.seconds(cost.get("seconds_per_epoch")),
        "tokens / s": wording.count(speed),
        "memory": wording.MISSING if memory is None else f"{wording.count(memory)} MiB",
        "parameters": wording.count(cost.get("parameters")),
        "users / s": wording.count(cost.get("inference_users_per_second")),
        "one user, ms": wording.pair(*(cost.get(f"inference_latency_ms_p{p}") for p in (50, 95))),
        "finished": run.finished[:16].replace("T", " ") or wording.MISSING,
        "commit": (run.commit or wording.MISSING)[:10],
    }


def _versions(found: list[Run]) -> list[tuple[str, str]]:
    """Every version any run was made with; several where runs differ."""
    seen: dict[str, dict[str, None]] = {}
    for run in found:
        for name, version in run.versions.items():
            seen.setdefault(name, {})[str(version)] = None
    return [(name, ", ".join(versions)) for name, versions in sorted(seen.items())]


@lru_cache(maxsize=1)
def _packed_plotly() -> str:
    packed = gzip.compress(plotly.offline.get_plotlyjs().encode(), compresslevel=9, mtime=0)
    return base64.b64encode(packed).decode("ascii")


def _template() -> jinja2.Template:
    folder = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=folder, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html")
