"""Report of a data set from its runs on disk: insights, leaderboard, figures, examples, HTML page, summary.

The functions are called in this order. Their results are JSON, except for the leaderboard and the figures.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import polars as pl
import pyarrow as pa

from recpipe.config import ID_KINDS
from recpipe.data.protocol import DERIVED_FIELDS, EVALUATION_FIELDS
from recpipe.evaluation.lists import Popularity
from recpipe.reporting import examples as users
from recpipe.reporting import geometry as geometry_tables
from recpipe.reporting import html, semantic_ids, summary
from recpipe.reporting.captions import FIGURES
from recpipe.reporting.figures.geometry import geometry_figures
from recpipe.reporting.figures.insights import insight_figures
from recpipe.reporting.figures.runs import figures
from recpipe.reporting.insights import Catalogue, OnDisk, Vectors
from recpipe.reporting.insights import insights as compute_insights
from recpipe.reporting.leaderboard import leaderboard, to_markdown
from recpipe.reporting.run_store import DamagedFileError, RunStore, check_metrics
from recpipe.reporting.studies import Studies, studies

if TYPE_CHECKING:
    from recpipe.config.schema import DatasetConfig, ReportConfig
    from recpipe.data.sequences import Fold, Sequences, Vocabulary

log = logging.getLogger(__name__)

INGESTED_ANEW = (
    "The log was ingested anew, with other steps, after it was split: the profile and the steps below are not "
    "of the data behind the numbers. Run `kedro run --pipelines=train,evaluate,report`"
)


def analyse(
    runs: RunStore,
    train_set: Sequences,
    vocabulary: Vocabulary,
    split: Mapping[str, Any],
    *,
    models: Sequence[str],
    seed: int,
    report: ReportConfig,
) -> dict[str, Any]:
    """Confidence intervals, user segments, properties of lists (see ``reporting/insights.py``), scope of the page.

    ``split`` is the protocol of the split on disk. The page shows the protocol of the first of ``models`` that has a
    run of ``seed`` on this split, or else that of the split.
    """
    dataset = str(split["dataset"])
    metrics = _own_metrics(runs, dataset)
    ties = runs.tie_sensitivity.readable()
    catalogue = Catalogue(
        vocabulary.ids, Popularity.of(train_set, len(vocabulary)), _item_vectors(runs, vocabulary)
    )
    result = compute_insights(
        list(metrics.values()),
        OnDisk(
            runs.ranks.loads(),
            runs.recommendations.loads(),
            {run: lambda run=run: ties[run] for run in ties},  # type: ignore[misc]
        ),
        catalogue,
        protocol=_page_protocol(_protocols(metrics), models, seed, split),
        seed=seed,
        metric=report.metric,
        baseline=report.baseline,
        resamples=report.resamples,
    )
    foreign = [run for run in runs.metrics.readable() if run not in metrics]
    problems = [
        *result["problems"],
        *runs.metrics.problems,
        *runs.tie_sensitivity.problems,
        *(
            f"{run} holds a run of {runs.metrics[run]['dataset']}, not of {dataset}: it is left out"
            for run in foreign
        ),
    ]
    for each in problems:
        log.warning("%s", each)
    return {
        **result,
        "dataset": dataset,
        "requested": list(models),
        "split": {"id": split["id"], "steps": list(split["steps"])},
        "problems": problems,
    }


def rank(runs: RunStore, insights: Mapping[str, Any], *, metric: str) -> tuple[pl.DataFrame, str]:
    """The leaderboard of all runs, as a table and as Markdown; ``insights`` are those of ``analyse``."""
    metrics = _own_metrics(runs, insights["dataset"]).values()
    board = leaderboard(metrics, metric=metric, certainty=insights["certainty"])
    return board, to_markdown(board, metric=metric)


def draw(
    runs: RunStore,
    insights: Mapping[str, Any],
    board: pl.DataFrame,
    *,
    profile: Mapping[str, Any],
    steps: pl.DataFrame,
    geometry: Mapping[str, Any] | None = None,
    metric: str,
) -> dict[str, go.Figure]:
    """All ``FIGURES`` by name; those without data are empty."""
    rows = _rows_of_page(board, insights)
    drawings = figures(
        _own_metrics(runs, insights["dataset"]).values(),
        profile=profile,
        steps=steps,
        curves=_curves(runs),
        metric=metric,
    )
    drawings |= insight_figures(insights, rows, metric=metric)
    drawings |= _studies(runs, rows, insights).figures
    drawings |= geometry_figures(geometry)
    return {name: drawings.get(name) or go.Figure() for name in FIGURES}


def pick(
    runs: RunStore,
    insights: Mapping[str, Any],
    board: pl.DataFrame,
    test_set: Fold,
    vocabulary: Vocabulary,
    items: pa.Table,
    report: ReportConfig,
) -> list[users.Example]:
    """Example users with recommendations of each model; empty where no run has ranks and recommendations.

    Requested models come first, then the others by rank.
    """
    protocols = _protocols(_own_metrics(runs, insights["dataset"]))
    comparable = {run for run, protocol in protocols.items() if protocol["id"] == insights["protocol"]}
    candidates = comparable & runs.ranks.keys() & runs.recommendations.keys() & {*insights["ranked"]}
    lists: dict[str, pa.Table] = {}
    for run in _in_order(board, insights):
        if run in candidates:
            try:
                lists[run] = runs.recommendations[run]
            except DamagedFileError as error:
                log.warning("%s", error)
    if not lists:
        return []
    return users.examples(
        test_set.histories,
        runs.ranks[next(iter(lists))],
        {run.split("/")[0]: table for run, table in lists.items()},
        items,
        item_ids=vocabulary.ids,
        seed=insights["seed"],
        users=report.examples,
        history=report.history,
        top=report.recommended,
    )


def write(
    runs: RunStore,
    insights: Mapping[str, Any],
    board: pl.DataFrame,
    examples: Sequence[users.Example],
    *,
    dataset: DatasetConfig,
    profile: Mapping[str, Any],
    steps: pl.DataFrame,
    geometry: Mapping[str, Any] | None = None,
) -> tuple[str, str]:
    """The HTML page of the data set, and the summary for the terminal."""
    name, metric = insights["dataset"], insights["metric"]
    metrics = _own_metrics(runs, name)
    curves, study_results = _curves(runs), _studies(runs, _rows_of_page(board, insights), insights)
    id_sections, id_problems = _id_sections(runs)
    problems = dict.fromkeys([*insights["problems"], *runs.curves.problems])
    page = html.page(
        {"name": name, **dataset.model_dump()},
        metrics.values(),
        profile=profile,
        steps=steps,
        curves=curves,
        examples=examples,
        semantic_ids=id_sections,
        insights={**insights, "problems": list(problems)},
        studies=study_results,
        geometry=geometry_tables.section(geometry, insights["split"]["id"]),
        notes=[*_notes(steps, insights["split"]), *id_problems],
        metric=metric,
    )
    count = sum(protocol["id"] == insights["protocol"] for protocol in _protocols(metrics).values())
    title = f"{dataset.title or name}: {count} runs under protocol {insights['protocol']}"
    lines = [section.line for section in id_sections]
    return page, summary.summary(board, examples, title=title, links={}, ids=lines, metric=metric)


def steps_of(ingest_steps: pl.DataFrame) -> tuple[str, ...]:
    """The step table of ingest as lines of text, as in the protocol."""
    return tuple(f"{row['name']} {row['detail']}".strip() for row in ingest_steps.to_dicts())


def _own_metrics(runs: RunStore, dataset: str) -> dict[str, Any]:
    """Metrics by run, without runs of another data set in the same folder; unchecked otherwise."""
    return {
        run: each
        for run, each in runs.metrics.readable().items()
        if not isinstance(each, Mapping) or each.get("dataset") in (None, dataset)
    }


def _protocols(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Protocols by run, where the metrics are complete."""
    return {run: each["protocol"] for run, each in metrics.items() if not check_metrics(each)}


def _page_protocol(
    protocols: Mapping[str, Mapping[str, Any]], models: Sequence[str], seed: int, split: Mapping[str, Any]
) -> str:
    fields = {
        name: value for name, value in split.items() if name not in {*EVALUATION_FIELDS, *DERIVED_FIELDS}
    }
    for model in models:
        protocol = protocols.get(f"{model}/seed_{seed}", {})
        if protocol and all(protocol.get(name) == value for name, value in fields.items()):
            return str(protocol["id"])
    return str(split["id"])


def _item_vectors(runs: RunStore, vocabulary: Vocabulary) -> Vectors | None:
    """Item vectors (text, else images) and a mask of items that have one; None without any."""
    for modality in ("text", "image"):
        if modality in runs.vectors:
            try:
                embeddings = runs.vectors[modality]
            except DamagedFileError:
                continue  # reported where vectors are measured
            rows = embeddings.rows(vocabulary.ids)
            return embeddings.vectors[rows].astype("float64"), (rows >= 0) & embeddings.present[rows]
    return None


def _rows_of_page(board: pl.DataFrame, insights: Mapping[str, Any]) -> pl.DataFrame:
    """Rows of the leaderboard under the protocol of the page."""
    return board.filter(board["protocol"] == insights["protocol"])


def _in_order(board: pl.DataFrame, insights: Mapping[str, Any]) -> list[str]:
    """Runs of the seed under the protocol of the page: requested models first, then the rest by rank."""
    ranked = _rows_of_page(board, insights)["name"].to_list()
    requested = [name for name in insights["requested"] if name in ranked]
    return [f"{name}/seed_{insights['seed']}" for name in dict.fromkeys([*requested, *ranked])]


def _curves(runs: RunStore) -> dict[str, pa.Table]:
    """Curves by "model · seed 42", without the empty ones of models with a closed-form fit."""
    curves = runs.curves.readable()
    return {run.replace("/seed_", " · seed "): curve for run, curve in curves.items() if curve.num_rows}


def _studies(runs: RunStore, shown: pl.DataFrame, insights: Mapping[str, Any]) -> Studies:
    return studies(runs.contexts.loads(), runs.studies.loads(), shown, protocol=insights["protocol"])


def _id_sections(runs: RunStore) -> tuple[list[semantic_ids.Section], list[str]]:
    """A section per kind of semantic ids, and a sentence for each file that cannot be used."""
    qualities = runs.qualities.readable()
    sections, problems = [], runs.qualities.problems
    for kind in (kind for kind in ID_KINDS if kind in qualities):
        drawings = runs.id_figures(kind)
        try:
            sections.append(semantic_ids.section(qualities[kind], drawings.readable()))
        except (KeyError, TypeError) as error:
            problems.append(
                f"The quality of {kind}_ids is of another version ({error}): run semantic_ids again"
            )
        problems += drawings.problems
    return sections, problems


def _notes(steps: pl.DataFrame, split: Mapping[str, Any]) -> list[str]:
    """A warning where the data were ingested with other steps than those that were split."""
    if list(steps_of(steps)) == list(split["steps"]):
        return []
    log.warning("%s", INGESTED_ANEW)
    return [INGESTED_ANEW]
