"""Report of a data set from its runs on disk: insights, leaderboard, figures, example users, HTML page, summary.

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
from recpipe.data.protocol import DERIVED_FIELDS, EVALUATION_FIELDS, Protocol
from recpipe.evaluation.lists import Popularity
from recpipe.evaluation.profile import profile_warnings, split_warnings
from recpipe.reporting.audit import audit_section
from recpipe.reporting.examples import Example, pick_examples
from recpipe.reporting.figures import CAPTIONS
from recpipe.reporting.figures.audit import audit_figures
from recpipe.reporting.figures.geometry import geometry_figures, geometry_section
from recpipe.reporting.figures.insights import insight_figures
from recpipe.reporting.figures.runs import data_figures, run_figures
from recpipe.reporting.figures.semantic_ids import IdSection, id_section
from recpipe.reporting.figures.studies import StudySection, study_section
from recpipe.reporting.html import render_page
from recpipe.reporting.insights import Catalogue, RunOutputs, Vectors, compute_insights
from recpipe.reporting.leaderboard import leaderboard, protocol_title, to_markdown
from recpipe.reporting.run_store import DamagedFileError, RunStore
from recpipe.reporting.runs import check_metrics
from recpipe.reporting.summary import format_summary
from recpipe.reporting.tuning import tuning_section
from recpipe.semantic_ids.vector_rows import VectorRows

if TYPE_CHECKING:
    from recpipe.config.schema import DatasetConfig, ReportConfig
    from recpipe.data.sequences import Fold, Sequences, Vocabulary

log = logging.getLogger(__name__)

OPTIONAL = {
    "hit_rate_at_cutoffs", "recall_at_cutoffs", "coverage_at_cutoffs", "segments_warmth", "usage", "sunburst",
    "tuning_history", "tuning_importance", "tuning_coordinates",
}  # fmt: skip
FIGURES = tuple(name for name in CAPTIONS if name not in OPTIONAL)  # of every report
OTHER_STEPS = (
    "The log was ingested again with other steps after it was split: the profile and the steps below do not describe "
    "the data behind the metrics. Run `kedro run --pipelines=train,evaluate,report`"
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
    requested: str | None = None,
) -> dict[str, Any]:
    """Compute the insights (see ``compute_insights``) and the scope of the page.

    Its protocol is that of the first of ``models`` that has a run of ``seed`` on ``split``, or else that of ``split``.
    Of several it is ``requested``, the id of the protocol of the command, if there are runs under it.
    """
    dataset = str(split["dataset"])
    metrics = _dataset_metrics(runs, dataset)
    popularity = Popularity.of(train_set, len(vocabulary))
    ties = {run: runs.tie_sensitivity.loaders()[run] for run in runs.tie_sensitivity.readable()}
    protocols = _protocols(metrics)
    page = _page_protocol(protocols, models, seed, split, requested=requested)
    result = compute_insights(
        list(metrics.values()),
        RunOutputs(runs.ranks.loaders(), runs.recommendations.loaders(), ties),
        Catalogue(vocabulary.ids, popularity, _item_vectors(runs, vocabulary)),
        protocol=page,
        seed=seed,
        metric=report.metric,
        baseline=report.baseline,
        resamples=report.resamples,
    )
    problems = [*result["problems"], *runs.metrics.problems, *runs.tie_sensitivity.problems]
    others = {run: values for run, values in runs.metrics.readable().items() if run not in metrics}
    problems += [f"{run} holds a run of {others[run]['dataset']}, not of {dataset}: it is left out" for run in others]
    for problem in problems:
        log.warning("%s", problem)
    scope = {"dataset": dataset, "requested": list(models), "problems": problems}
    exclude_seen = next((p["exclude_seen"] for p in protocols.values() if p["id"] == page), split["exclude_seen"])
    warnings = split_warnings(split.get("sizes") or {}, exclude_seen=exclude_seen)
    about_split = {"id": split["id"], "steps": list(split["steps"]), "exclude_seen": exclude_seen, "warnings": warnings}
    return {**result, **scope, "split": about_split}


def rank(runs: RunStore, insights: Mapping[str, Any], *, metric: str) -> tuple[pl.DataFrame, str]:
    """Build the leaderboard of all runs, as a table and as Markdown, with the intervals of ``analyse``."""
    metrics = _dataset_metrics(runs, insights["dataset"]).values()
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
    """Draw all ``FIGURES`` by name; those without data are empty."""
    page_board, metrics = _page_board(board, insights), _dataset_metrics(runs, insights["dataset"]).values()
    figures = {
        **run_figures(metrics, curves=_curves(runs), metric=metric, protocol=insights["protocol"]),
        **data_figures(profile, steps),
        **insight_figures(insights, page_board, metric=metric),
        **_studies(runs, page_board, insights).figures,
        **geometry_figures(geometry),
        **audit_figures(insights.get("audit"), page_board, metric=metric),
    }
    return {name: figures.get(name) or go.Figure() for name in FIGURES}


def pick(
    runs: RunStore,
    insights: Mapping[str, Any],
    board: pl.DataFrame,
    test_set: Fold,
    vocabulary: Vocabulary,
    items: pa.Table,
    report: ReportConfig,
) -> list[Example]:
    """Pick example users with the lists of each model, requested ones first, then by rank; empty without any list."""
    protocols = _protocols(_dataset_metrics(runs, insights["dataset"]))
    comparable = {key for key, protocol in protocols.items() if protocol["id"] == insights["protocol"]}
    candidates = comparable & runs.ranks.keys() & runs.recommendations.keys() & {*insights["ranked"]}
    lists: dict[str, pa.Table] = {}
    ranked = _page_board(board, insights)["name"].to_list()
    requested = [name for name in insights["requested"] if name in ranked]
    for model in dict.fromkeys([*requested, *ranked]):
        key = f"{model}/seed_{insights['seed']}/{insights['protocol']}"
        if key in candidates:
            try:
                lists[model] = runs.recommendations[key]
            except DamagedFileError as error:
                log.warning("%s", error)
    if not lists:
        return []
    return pick_examples(
        test_set.histories,
        runs.ranks[f"{next(iter(lists))}/seed_{insights['seed']}/{insights['protocol']}"],
        lists,
        items,
        item_ids=vocabulary.ids,
        seed=insights["seed"],
        users=report.examples,
        history=report.history,
        k=report.recommended,
    )


def write(
    runs: RunStore,
    insights: Mapping[str, Any],
    board: pl.DataFrame,
    examples: Sequence[Example],
    *,
    dataset: DatasetConfig,
    profile: Mapping[str, Any],
    steps: pl.DataFrame,
    geometry: Mapping[str, Any] | None = None,
) -> tuple[str, str]:
    """Write the HTML page of the data set, and the summary for the terminal."""
    name, metric, protocol = insights["dataset"], insights["metric"], insights["protocol"]
    metrics, curves = _dataset_metrics(runs, name), _curves(runs)
    ids, id_problems = _id_sections(runs)
    problems = dict.fromkeys([*insights["problems"], *runs.curves.problems])
    notes = [OTHER_STEPS] if list(steps_of(steps)) != list(insights["split"]["steps"]) else []
    for note in notes:
        log.warning("%s", note)
    split_notes, exclude_seen = insights["split"]["warnings"], insights["split"]["exclude_seen"]
    notes += split_notes
    data_notes = profile_warnings(profile, dataset=name, exclude_seen=exclude_seen and not split_notes)
    page_board = _page_board(board, insights)
    audited = audit_section(insights.get("audit"), page_board, metric=metric)
    page = render_page(
        {"name": name, **dataset.model_dump()},
        metrics.values(),
        profile=profile,
        steps=steps,
        curves=curves,
        examples=examples,
        semantic_ids=ids,
        insights={**insights, "problems": list(problems)},
        studies=_studies(runs, page_board, insights),
        tuning=tuning_section(runs.tunings.loaders(), protocol=protocol),
        geometry=geometry_section(geometry, insights["split"]["id"]),
        audit=audited,
        notes=[*notes, *data_notes, *id_problems],
        metric=metric,
    )
    count = sum(fields["id"] == protocol for fields in _protocols(metrics).values())
    label = protocol_title(_page_board(board, insights)) if count else None
    title = f"{dataset.title or name}: {count} runs under protocol {f'{label} ({protocol})' if label else protocol}"
    lines = [section.line for section in ids]
    ranked = page_board["name"].to_list()
    best = next((model for model in ranked if examples and model in examples[0].recommendations), "")
    summary = format_summary(
        board,
        examples,
        title=title,
        links={},
        ids=lines,
        warnings=notes,  # ingest has printed those of the profile
        audit=audited.headlines if audited else (),
        model=best,
        metric=metric,
    )
    return page, summary


def steps_of(ingest_steps: pl.DataFrame) -> tuple[str, ...]:
    """Return the step table of ingest as lines of text, as in the protocol."""
    return tuple(f"{row['name']} {row['detail']}".strip() for row in ingest_steps.to_dicts())


def _dataset_metrics(runs: RunStore, dataset: str) -> dict[str, Any]:
    """Unchecked metrics by key of the run, without runs of another data set."""
    return {
        run: metrics
        for run, metrics in runs.metrics.readable().items()
        if not isinstance(metrics, Mapping) or metrics.get("dataset") in (None, dataset)
    }


def _protocols(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Protocols of usable metrics by key of the run."""
    return {run: values["protocol"] for run, values in metrics.items() if not check_metrics(values)}


def _page_protocol(
    protocols: Mapping[str, Mapping[str, Any]],
    models: Sequence[str],
    seed: int,
    split: Mapping[str, Any],
    *,
    requested: str | None,
) -> str:
    """Return the protocol id of the page: that of the first of ``models`` with evaluations on this split.

    Of several it is ``requested``, or else that of the split. Without any it is the latter.
    """
    no_split = {*EVALUATION_FIELDS, *DERIVED_FIELDS, "name"}
    defaults = Protocol(dataset="").to_dict()  # of fields that older runs lack
    fields = {name: value for name, value in split.items() if name not in no_split}
    for model in models:
        runs = {key: run for key, run in protocols.items() if key.startswith(f"{model}/seed_{seed}/")}
        same = [key for key in runs if all(runs[key].get(name, defaults.get(name)) == fields[name] for name in fields)]
        same.sort(key=lambda key: (runs[key]["id"] != requested, runs[key]["id"] != split["id"]))
        if same:
            return str(runs[same[0]]["id"])
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
            return VectorRows(embeddings.vectors, rows), (rows >= 0) & embeddings.present[rows]
    return None


def _page_board(board: pl.DataFrame, insights: Mapping[str, Any]) -> pl.DataFrame:
    """Rows of the leaderboard under the protocol of the page."""
    return board.filter(board["protocol"] == insights["protocol"])


def _curves(runs: RunStore) -> dict[str, pa.Table]:
    """Curves by "model · seed 42", without the empty ones of closed-form models."""
    curves = runs.curves.readable()
    return {run.replace("/seed_", " · seed "): curve for run, curve in curves.items() if curve.num_rows}


def _studies(runs: RunStore, page_board: pl.DataFrame, insights: Mapping[str, Any]) -> StudySection:
    loaders = runs.contexts.loaders(), runs.studies.loaders()
    return study_section(*loaders, page_board, protocol=insights["protocol"])


def _id_sections(runs: RunStore) -> tuple[list[IdSection], list[str]]:
    """A section per kind of semantic ids, and messages of unusable files."""
    qualities = runs.qualities.readable()
    sections, problems = [], runs.qualities.problems
    for kind in (kind for kind in ID_KINDS if kind in qualities):
        figures = runs.id_figures(kind)
        try:
            sections.append(id_section(qualities[kind], figures.readable()))
        except (KeyError, TypeError) as error:
            problems.append(f"The quality of {kind}_ids is of another version ({error}): run semantic_ids again")
        problems += figures.problems
    return sections, problems
