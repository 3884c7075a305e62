"""Beyond the mean: how sure each number is, for whom a model is good, what its lists are like. All as JSON.

Computed from what runs left on disk; what cannot be is named among the problems, and the rest is made.

Tables of insights as text: models against the baseline, and what lists are like besides accurate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from recpipe.evaluation.lists import Lists, Popularity, list_metrics
from recpipe.evaluation.metrics import calibration, metrics_from_ranks
from recpipe.evaluation.segments import POPULARITY, popularity_groups, segments
from recpipe.evaluation.significance import BEST, UserMetric, compare
from recpipe.reporting.formatting import INTERVAL, MISSING, count, interval, percent, probability, short
from recpipe.reporting.run_store import Row, Run, read_runs, rows

DRAWS = 400_000_000  # users x resamples: about ten seconds
Loads = Mapping[str, Callable[[], Any]]
Vectors = tuple[NDArray[np.float64], NDArray[np.bool_]]


@dataclass(frozen=True)
class OnDisk:
    """What runs left besides metrics.json, by `model/seed_42`: functions that load Arrow tables, of `ties` dicts."""

    ranks: Loads = field(default_factory=dict)
    recommendations: Loads = field(default_factory=dict)
    ties: Loads = field(default_factory=dict)


@dataclass(frozen=True)
class Catalogue:
    """What the split on disk says of items; ``vectors`` (I, D) and which items have one (I,)."""

    item_ids: NDArray[np.object_]
    popularity: Popularity
    vectors: Vectors | None = None


def insights(
    metrics: Sequence[Mapping[str, Any]],
    on_disk: OnDisk,
    catalogue: Catalogue,
    *,
    protocol: str,
    seed: int,
    metric: str = "ndcg@10",
    baseline: str = BEST,
    resamples: int = 10_000,
) -> dict[str, Any]:
    """``certainty`` by protocol, the rest for runs of ``protocol``, whose data ``catalogue`` is of; all by the names of
    the leaderboard's rows. Of several seeds ``certainty`` takes all, the rest ``seed`` or else the first. Those in
    ``ranked`` (`model/seed_42`) have the ranks on disk that are behind their metrics.
    """
    found, _ = read_runs(metrics)
    together, problems = rows(found), list[str]()
    ranks = {run_name(run): _ranks(run, on_disk, metric, problems) for run in found}
    certainty = {}
    for each in dict.fromkeys(row.protocol for row in together):
        of_each = {row.model: row for row in together if row.protocol == each}
        if sure := _certainty(of_each, ranks, metric, baseline, resamples, problems):
            certainty[each] = sure
    shown = {row.model: chosen(row, ranks, seed) for row in together if row.protocol == protocol}
    k = int(metric.partition("@")[2])
    told: dict[str, Any] = {
        "metric": metric,
        "protocol": protocol,
        "seed": seed,
        "ranked": [name for name, table in ranks.items() if table is not None],
        "certainty": certainty,
        "segments": _each(shown, lambda run: _segments(ranks[run_name(run)], catalogue, k), problems),
        "lists": _each(shown, lambda run: _lists(run, ranks, on_disk, catalogue, k), problems),
        "training": _training(catalogue),
        "calibration": _each(shown, lambda run: _calibration(run, ranks, on_disk), problems),
        "ties": _each(shown, lambda run: _ties(run, on_disk, metric), problems),
    }
    problems += [
        f"{name} recommends nothing to anybody" for name, each in told["lists"].items() if not each["users"]
    ]
    plain: dict[str, Any] = _plain(told)
    return {**plain, "problems": list(dict.fromkeys(problems))}


def run_name(run: Run) -> str:
    """As runs are called on disk."""
    return f"{run.model}/seed_{run.seed}"


def chosen(row: Row, ranks: Mapping[str, Any], seed: int) -> Run | None:
    """The run of a row that stands for it: that of ``seed``, or else the first that has ranks."""
    able = [run for run in row.runs if ranks.get(run_name(run)) is not None]
    return next((run for run in able if run.seed == seed), able[0] if able else None)


def _ranks(run: Run, on_disk: OnDisk, metric: str, problems: list[str]) -> pa.Table | None:
    """None where there are none, or they are not those behind the run's metrics."""
    if run_name(run) not in on_disk.ranks:
        problems.append(f"{run_name(run)} has no ranks on disk: how sure its numbers are is not known")
        return None
    try:
        table: pa.Table = on_disk.ranks[run_name(run)]()
        value = metrics_from_ranks(table, cutoffs=[int(metric.partition("@")[2])]).get(metric)
    except ValueError as error:
        problems.append(_named(run, error))
        return None
    if value is None or not math.isclose(value, _told(run, metric), abs_tol=1e-9):
        problems.append(
            f"the ranks of {run_name(run)} on disk are not those behind its metrics: evaluate it again"
        )
        return None
    return table


def _named(run: Run, error: ValueError) -> str:
    """With the run in front, where it does not say so itself."""
    told = str(error)
    return told if run_name(run) in told else f"{run_name(run)}: {told}"


def _certainty(
    of_protocol: Mapping[str, Row],
    ranks: Mapping[str, pa.Table | None],
    metric: str,
    baseline: str,
    resamples: int,
    problems: list[str],
) -> dict[str, Any] | None:
    tables = {name: [ranks[run_name(run)] for run in row.runs] for name, row in of_protocol.items()}
    known = {name: [table for table in found if table is not None] for name, found in tables.items()}
    known = {name: found for name, found in known.items() if found}
    if not known:
        return None
    named = [name for name in known if baseline in (name, of_protocol[name].name)]
    try:
        per_user = UserMetric.of(
            known,
            metric=metric,
            protocols={name: [run.protocol_id for run in of_protocol[name].runs] for name in known},
        )
    except ValueError as error:
        problems.append(str(error))
        return None
    affordable = min(resamples, max(1000, DRAWS // len(per_user.users)))
    found = compare(per_user, baseline=named[0] if named else BEST, resamples=affordable)
    return {
        **asdict(found),
        "resamples": affordable,
        "seeds": {name: len(each) for name, each in known.items()},
    }


def _each(
    shown: Mapping[str, Run | None], measure: Callable[[Run], Any], problems: list[str]
) -> dict[str, Any]:
    """By row; without those for which there is nothing, or something wrong."""
    found = {}
    for name, run in shown.items():
        if run is None:
            continue
        try:
            value = measure(run)
        except ValueError as error:
            problems.append(_named(run, error))
            continue
        if value is not None:
            found[name] = value
    return found


def _segments(ranks: pa.Table | None, catalogue: Catalogue, k: int) -> list[dict[str, Any]] | None:
    if ranks is None:
        return None
    table = segments(ranks, item_ids=catalogue.item_ids, train_events=catalogue.popularity.events, k=k)
    return table.to_pylist()


def _lists(
    run: Run, ranks: Mapping[str, Any], on_disk: OnDisk, catalogue: Catalogue, k: int
) -> dict[str, Any] | None:
    if (name := run_name(run)) not in on_disk.recommendations:
        return None
    lists = Lists.of(on_disk.recommendations[name](), catalogue.item_ids, k)
    return list_metrics(
        lists, catalogue.popularity, ranks[name], item_ids=catalogue.item_ids, vectors=catalogue.vectors
    )


def _training(catalogue: Catalogue) -> dict[str, Any]:
    """What lists would be like whose items were drawn from the training events."""
    events, groups = catalogue.popularity.events, popularity_groups(catalogue.popularity.events)
    total = max(int(events.sum()), 1)
    shares = {name: events[groups == code].sum() / total for code, name in enumerate(POPULARITY)}
    items = {name: int((groups == code).sum()) for code, name in enumerate(POPULARITY)}
    return {**shares, "arp": (events.astype(float) ** 2).sum() / total, "items": items}


def _calibration(run: Run, ranks: Mapping[str, Any], on_disk: OnDisk) -> dict[str, Any] | None:
    if (name := run_name(run)) not in on_disk.recommendations:
        return None
    found = calibration(on_disk.recommendations[name](), ranks[name])
    return None if found is None else asdict(found)


def _ties(run: Run, on_disk: OnDisk, metric: str) -> dict[str, Any] | None:
    """Of an earlier evaluation or another protocol there is none."""
    found = on_disk.ties.get(run_name(run), lambda: {})()
    if not isinstance(found, Mapping):
        raise ValueError("its tie sensitivity is not an object: run the pipeline ties again")
    same = found.get("protocol") == run.protocol_id and found.get("metric") == metric
    as_ordered = found.get("as_ordered", math.nan)
    return dict(found) if same and math.isclose(as_ordered, _told(run, metric), abs_tol=1e-6) else None


def _told(run: Run, metric: str) -> float:
    """What metrics.json says, NaN where it says nothing."""
    value = run.test.get(metric)
    return math.nan if value is None else value


def _plain(value: Any) -> Any:
    """JSON types; what is not finite is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


Table = tuple[list[str], list[list[str]]]
LISTS = {  # columns of the table of lists: key, head, meaning
    "coverage": ("coverage", "share of the catalogue in at least one list"),
    "gini": ("Gini", "of how often items are recommended: 0 all equally, near 1 everybody the same few"),
    "arp": ("popularity", "training events of a recommended item, on average (ARP)"),
    "novelty": ("novelty", "bits of surprise that someone has the item; one more bit is half as many people"),
    "diversity": (
        "diversity",
        "how unlike each other by content the items of a list are: 0 alike, 1 unrelated",
    ),
    "serendipity": (
        "serendipity",
        "hits, weighted by how much earlier they stand than by popularity, in thousandths",
    ),
    "divergence": (
        "divergence",
        "bits between recommendations and training data: 0 the same items as often, 1 none in common",
    ),
    "error": (
        "calibration",
        "how far probabilities and what came true are apart, on average, in all lists kept",
    ),
    "said": (
        "said / so",
        "how often the target should be in the list kept, longer than the one above, by its probabilities; and is",
    ),
}


def certainty_table(found: Mapping[str, Any], board: pl.DataFrame) -> Table | None:
    """One protocol's models, best first, each against the baseline; with the range over ties where it was measured."""
    sure = (found.get("certainty") or {}).get(board["protocol"][0]) if board.height else None
    if not sure:
        return None
    ties = found["ties"] if found.get("protocol") == board["protocol"][0] else {}
    head = [
        "model",
        "difference",
        INTERVAL,
        "p",
        *(["other orders of ties"] if ties else []),
    ]
    rows = []
    for name in board["model"].to_list():
        if name not in sure["estimates"]:
            continue
        difference = sure["differences"].get(name)
        cells = (
            [MISSING, MISSING, "baseline"]
            if difference is None
            else [
                _signed(difference["mean"]),
                _signed_interval(difference),
                probability(difference["p_holm"]),
            ]
        )
        tied = [interval(ties[name]["low"], ties[name]["high"]) if name in ties else MISSING] if ties else []
        rows.append([name, *cells, *tied])
    return head, rows


def lists_table(found: Mapping[str, Any], board: pl.DataFrame) -> tuple[Table, list[tuple[str, str]]] | None:
    """The lists of every model, best first, and what the columns mean; columns that nobody has are left out."""
    if not board.height or not found.get("lists"):
        return None
    rows = {}
    for name in board["model"].to_list():
        if (each := found["lists"].get(name)) is not None:
            judged = found["calibration"].get(name) or {}
            rows[name] = {key: _cell(key, {**each, **judged}) for key in LISTS}
    kept = [key for key in LISTS if any(row[key] != MISSING for row in rows.values())]
    head = ["model", *(LISTS[key][0] for key in kept)]
    training = dict.fromkeys(kept, MISSING) | {"arp": count(found["training"]["arp"])}
    table = [["training data", *(training[key] for key in kept)]]
    table += [[name, *(row[key] for key in kept)] for name, row in rows.items()]
    return (head, table), [LISTS[key] for key in kept]


def _cell(key: str, values: Mapping[str, Any]) -> str:
    value = values.get(key)
    if value is None:
        return MISSING
    if key == "arp":
        return count(value) if value >= 100 else f"{value:.1f}"
    if key == "said":
        return f"{percent(value)} / {percent(values['so'])}"
    if key in ("coverage", "error"):
        return percent(value)
    return (
        f"{1000 * value:.2f}"
        if key == "serendipity"
        else f"{value:.2f}"
        if key == "novelty"
        else f"{value:.3f}"
    )


def _signed(value: float) -> str:
    return f"+{short(value)}" if value >= 0 else f"\u2212{short(-value)}"


def _signed_interval(difference: Mapping[str, Any]) -> str:
    low, high = difference["low"], difference["high"]
    return MISSING if low is None else f"{_signed(low)} to {_signed(high)}"
