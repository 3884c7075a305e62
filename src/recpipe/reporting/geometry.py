"""Geometry of the item vectors of all bundles and encoders of a data set, with random vectors for comparison.

Item geometry as the page shows it: tables with the band of chance under each number, and words.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from recpipe.config import split_names
from recpipe.data.protocol import Protocol
from recpipe.evaluation.geometry.study import GeometrySettings, Items, measure_geometry
from recpipe.evaluation.geometry.tables import VectorSource, encoder_source
from recpipe.evaluation.lists import Popularity
from recpipe.evaluation.segments import POPULARITY
from recpipe.reporting.figures.geometry import geometry_figures
from recpipe.reporting.formatting import MISSING, count, percent
from recpipe.reporting.run_store import DamagedFileError, RunStore, check_metrics

if TYPE_CHECKING:
    from recpipe.config.schema import GeometryConfig
    from recpipe.data.sequences import Sequences, Vocabulary

log = logging.getLogger(__name__)


def geometry_of_runs(
    runs: RunStore,
    vocabulary: Vocabulary,
    train_set: Sequences,
    items: pa.Table,
    protocol: dict[str, Any],
    *,
    config: GeometryConfig,
    metric: str,
    seed: int,
) -> dict[str, Any]:
    """Measure all item tables (see ``recpipe.evaluation.geometry.study``) as JSON, the best model by ``metric`` first.

    ``protocol`` is that of the split. Raises ValueError for models in the config that are not trained.
    """
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    about = Items(
        vocabulary,
        [titles.get(item) or str(item) for item in vocabulary.ids],
        Popularity.of(train_set, len(vocabulary)).events,
        Protocol.from_dict(protocol),
    )
    names = _requested(runs, config.models, str(protocol["dataset"]))
    encoders, problems = _encoders(runs, vocabulary)
    bundles = {run: load for run, load in runs.bundles.loads().items() if run.split("/")[0] in names}
    result = measure_geometry(
        bundles,
        encoders,
        about,
        quality=_quality(runs, metric, protocol["id"]),
        seed=seed,
        settings=GeometrySettings(**config.model_dump(exclude={"models"})),
    )
    result |= {"protocol": protocol["id"], "seed": seed, "problems": [*problems, *result["problems"]]}
    for each in result["problems"]:
        log.warning("%s", each)
    return result


def _requested(runs: RunStore, models: str, dataset: str) -> list[str]:
    """Names of the models in ``models``, ``all`` for those on disk. Raises ValueError for one without a bundle."""
    trained = sorted({run.split("/")[0] for run in runs.bundles})
    names = trained if models == "all" else list(split_names(models))
    for name in names:
        if name not in trained:
            raise ValueError(
                f"there is no trained {name} of {dataset}, only {', '.join(trained) or 'nothing'}: "
                f"`kedro run --pipelines=train,evaluate --params dataset={dataset},model={name}` makes it"
            )
    return names


def _encoders(runs: RunStore, vocabulary: Vocabulary) -> tuple[list[VectorSource], list[str]]:
    """Item vectors of text and images as sources, and a sentence for each that cannot be read."""
    sources, problems = [], []
    for modality in ("text", "image"):
        if modality not in runs.vectors:
            continue
        try:
            embeddings = runs.vectors[modality]
        except DamagedFileError as error:
            problems.append(f"the {modality} vectors are left out: {error}")
            continue
        rows = embeddings.rows(vocabulary.ids)
        present = (rows >= 0) & embeddings.present[rows]
        sources.append(encoder_source(f"{modality} encoder", embeddings.vectors[rows], present))
    return sources, problems


def _quality(runs: RunStore, metric: str, protocol: str) -> dict[str, float]:
    """Validation metric by run under ``protocol``, to sort models; test metric of models without validation fold."""
    quality = {}
    for run, metrics in runs.metrics.readable().items():
        if check_metrics(metrics) or metrics["protocol"]["id"] != protocol:
            continue
        value = (metrics.get("valid") or {}).get(metric, metrics["test"].get(metric))
        if value is not None:
            quality[run] = float(value)
    return quality


COLUMNS = {  # key, head, meaning
    "participation_ratio": (
        "dimensions used",
        "participation ratio: how many directions would carry the variance if all carried as much; of the width. Those "
        "of an SVD carry about as much by construction",
    ),
    "effective_rank": ("effective rank", "the same by entropy, kinder to weak directions"),
    "intrinsic_dimension": (
        "intrinsic dimension",
        "how many numbers are needed to tell an item from its nearest ones, by the distances to the first two (TwoNN); "
        "hundreds of items cannot show more than a few dozen",
    ),
    "iso_score": ("IsoScore", "0: all variance in one direction, 1: the same in all"),
    "partition": (
        "isotropy",
        "of directions alone, from Mu and Viswanath: 1 where none is preferred",
    ),
    "mean_cosine": (
        "mean cosine",
        "of two items drawn at random: 0 where vectors point all ways, near 1 where all crowd into one cone",
    ),
    "skewness": (
        "hub skewness",
        "of how often items are among the nearest of others: far above 0, a few items are near everything",
    ),
    "gini": ("hub Gini", "of the same: 0 all equally often, near 1 always the same few"),
    "orphans": ("near nobody", "share of items that are among the nearest of no other"),
    "norm_popularity": (
        "length and popularity",
        "rank correlation: above 0, vectors of popular items are longer; none where all have one length",
    ),
}
GROUPS = {
    **{key: head for key, (head, _) in COLUMNS.items() if key not in ("effective_rank", "norm_popularity")},
    "norm": "length, mean = 1",
    "occurrence": "near others, mean = 1",
}
COMMAND = "kedro run --pipelines=geometry,report"


class Cell(NamedTuple):
    """A number, the band of chance under it, and whether it lies within."""

    value: str
    band: str
    inside: bool


@dataclass(frozen=True)
class Section:
    """The part of the page; every table is its head and rows of a name, what it is of, and cells."""

    head: list[str] = field(default_factory=list)
    rows: list[tuple[str, str, list[Cell]]] = field(default_factory=list)
    meanings: list[tuple[str, str]] = field(default_factory=list)
    group_head: list[str] = field(default_factory=list)
    group_rows: list[tuple[str, str, list[Cell]]] = field(default_factory=list)
    stability: tuple[list[str], list[list[str]]] | None = None
    examples: Sequence[Mapping[str, Any]] = ()
    intro: Mapping[str, str] = field(default_factory=dict)
    without: Sequence[str] = ()
    problems: Sequence[str] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)


def section(found: Mapping[str, Any] | None, split: str) -> Section | None:
    """From geometry.json, None where there is none; ``split`` is the id of the protocol of the split on disk."""
    if not found:
        return None
    stale = f"Measured on another split than that on disk ({found['protocol']}): run `{COMMAND}` again"
    tables = found["tables"]
    return Section(
        head=["table", *(head for head, _ in COLUMNS.values())],
        rows=[
            (each["name"], _of(each, found["items"]), [_cell(key, each) for key in COLUMNS])
            for each in tables
        ],
        meanings=list(COLUMNS.values()),
        group_head=["items", *GROUPS.values()],
        group_rows=[row for each in tables for row in _groups(each)],
        stability=_stability(found["stability"]),
        examples=found["nearest"],
        intro={
            "measured": count(found["items"]),
            "all": count(found["with_events"]),
            "k": count(found["k"]),
            "nulls": count(found["nulls"]),
            "best": (found["map"] or {}).get("name", ""),
        },
        without=found["without"],
        problems=[*([] if found["protocol"] == split else [stale]), *found["problems"]],
        figures=geometry_figures(found),
    )


def _of(table: Mapping[str, Any], items: int) -> str:
    """What is beside it, and of how many items it is where some have no vector."""
    return str(table["null"]) + ("" if table["items"] == items else f", {count(table['items'])} items")


def _cell(key: str, table: Mapping[str, Any]) -> Cell:
    value, band = table["values"][key], table["bands"][key]
    cell = _beside(key, value, band)
    if key == "participation_ratio" and value is not None:
        return cell._replace(value=f"{cell.value} of {table['width']}")
    return cell


def _beside(key: str, value: float | None, band: Sequence[float] | None) -> Cell:
    inside = value is not None and band is not None and band[0] <= value <= band[1]
    return Cell(_number(key, value), "" if band is None or value is None else _range(key, *band), inside)


def _range(key: str, low: float, high: float) -> str:
    """One number where both ends are written alike."""
    ends = list(dict.fromkeys(_number(key, value) for value in (low, high)))
    return (" to " if "\u2212" in "".join(ends) else "\u2013").join(ends)


def _number(key: str, value: float | None) -> str:
    if value is None:
        return MISSING
    if key in ("participation_ratio", "effective_rank", "intrinsic_dimension"):
        return f"{value:.1f}"
    if key == "orphans":
        return f"{100 * max(value, 0):.1f}\u202f%"
    return f"{value:.2f}".replace("-", "\u2212") if abs(value) >= 0.005 else "0.00"


def _groups(table: Mapping[str, Any]) -> list[tuple[str, str, list[Cell]]]:
    rows = []
    for name in POPULARITY:
        if (each := table["groups"].get(name)) is not None:
            cells = [_beside(key, each["values"][key], each["bands"][key]) for key in GROUPS]
            rows.append((f"{table['name']}, {name}", f"{count(each['values']['items'])} items", cells))
    return rows


def _stability(found: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]] | None:
    """How much of the neighbourhood and of the arrangement stays when only the seed changes."""
    if not found:
        return None
    head = ["table", "seeds", "same neighbours", "untrained", *POPULARITY, "CKA", "untrained"]
    rows = [
        [
            each["name"],
            str(each["seeds"]),
            percent(each["overlap"]),
            percent(each["by_chance"]),
            *(percent(each["groups"].get(name)) for name in POPULARITY),
            _number("cka", each["cka"]),
            _number("cka", each["cka_by_chance"]),
        ]
        for each in found
    ]
    return head, rows
