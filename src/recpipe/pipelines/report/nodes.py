"""Nodes of report: what is on disk, handed to recpipe.reporting.

`runs` and the other `run_…` inputs map "<model>/seed_<seed>" to a function that loads.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from recpipe.pipelines.blocks import ReportBlock
from recpipe.pipelines.report.loads import LISTS, RANKS, Loads, curves_of, guarded, readable, sections
from recpipe.pipelines.train.nodes import steps_of

log = logging.getLogger(__name__)

FIGURES = (
    "ndcg_at_cutoffs",
    "quality_seconds",
    "certainty",
    "segments_popularity",
    "segments_history",
    "popularity_of_lists",
    "calibration",
    "training_metric",
    "training_loss",
    "gradient_norm",
    "study_length",
    "study_width",
    "study_ablation",
    "effective_context",
    "attribution",
    "gap_by_length",
    "popularity",
    "events_over_time",
    "events_per_user",
    "steps",
    "geometry_variance",
    "geometry_spectrum",
    "geometry_groups",
    "geometry_norms",
    "geometry_overlap",
    "geometry_cka",
    "geometry_map",
)


def study_runs(
    runs: Loads,
    run_ranks: Loads,
    run_recommendations: Loads,
    run_ties: Loads,
    train_set: Any,
    vocabulary: Any,
    protocol: dict[str, Any],
    text_vectors: Any,
    image_vectors: Any,
    model: str,
    seed: int,
    report: ReportBlock,
    *after: Any,
) -> dict[str, Any]:
    """How sure the numbers are, for whom models are good and what lists are like; `after` is only waited for."""
    from recpipe.evaluation.lists import Popularity
    from recpipe.reporting.insights import Catalogue, OnDisk, insights

    every, damaged = readable(runs, "metrics")
    ties, also = readable(run_ties, "tie sensitivity")
    metrics = _own(every, protocol["dataset"])
    vectors = _vectors(vocabulary, text_vectors, image_vectors)
    popularity = Popularity.of(train_set, len(vocabulary))
    found = insights(
        list(metrics.values()),
        OnDisk(
            guarded(run_ranks, "ranks", RANKS),
            guarded(run_recommendations, "recommendations", LISTS),
            {name: partial(ties.get, name) for name in ties},
        ),
        Catalogue(vocabulary.ids, popularity, vectors),
        protocol=_protocol_shown(_protocols(metrics), model, seed, protocol),
        seed=seed,
        metric=report.metric,
        baseline=report.baseline,
        resamples=report.resamples,
    )
    found["dataset"] = protocol["dataset"]
    found["problems"] += [*damaged, *also]
    found["problems"] += [
        f"{name} holds a run of {every[name]['dataset']}, not of {found['dataset']}: it is left out"
        for name in every
        if name not in metrics
    ]
    for problem in found["problems"]:
        log.warning("%s", problem)
    return found


def rank_runs(runs: Loads, insights: dict[str, Any], report: ReportBlock) -> tuple[Any, str]:
    """The leaderboard as table and as Markdown."""
    from recpipe.reporting.leaderboard import leaderboard, to_markdown

    board = leaderboard(_all(runs, insights), metric=report.metric, certainty=insights["certainty"])
    return board, to_markdown(board, metric=report.metric)


def draw_figures(
    leaderboard: Any,
    insights: dict[str, Any],
    runs: Loads,
    run_curves: Loads,
    data_profile: Any,
    ingest_steps: Any,
    run_contexts: Loads,
    run_studies: Loads,
    geometry: dict[str, Any] | None,
    report: ReportBlock,
) -> dict[str, Any]:
    """Figures for the catalog, one entry each; an empty one where there is no data yet."""
    import plotly.graph_objects as go

    from recpipe.reporting.figures import figures
    from recpipe.reporting.geometry_figures import geometry_figures
    from recpipe.reporting.insight_figures import insight_figures
    from recpipe.reporting.studies import studies

    judged = leaderboard.filter(leaderboard["protocol"] == insights["protocol"])
    made = figures(
        _all(runs, insights),
        profile=data_profile,
        steps=ingest_steps,
        curves=curves_of(run_curves),
        metric=report.metric,
    )
    made |= insight_figures(insights, judged, metric=report.metric)
    made |= studies(run_contexts, run_studies, judged, protocol=insights["protocol"]).figures
    made |= geometry_figures(geometry)
    return {name: made.get(name) or go.Figure() for name in FIGURES}


def write_report(
    leaderboard: Any,
    insights: dict[str, Any],
    runs: Loads,
    run_curves: Loads,
    run_ranks: Loads,
    run_recommendations: Loads,
    data_profile: dict[str, Any],
    ingest_steps: Any,
    test_set: Any,
    vocabulary: Any,
    items: Any,
    protocol: dict[str, Any],
    id_figures: Loads,
    run_contexts: Loads,
    run_studies: Loads,
    datasets: dict[str, Any],
    dataset: str,
    model: str,
    seed: int,
    report: ReportBlock,
    geometry: dict[str, Any] | None = None,
    **qualities: dict[str, Any] | None,
) -> tuple[str, str]:
    """The HTML page of the data set, and the text that a run ends with.

    qualities: of the semantic ids by modality, `text_ids`, None where there are none.
    """
    from recpipe.reporting import examples, geometry_tables, html, summary
    from recpipe.reporting.studies import studies

    metrics = _own(readable(runs, "metrics")[0], dataset)
    protocols = _protocols(metrics)
    judged = _protocol_shown(protocols, model, seed, protocol)
    comparable = {name for name, found in protocols.items() if found["id"] == judged}
    able = comparable & run_ranks.keys() & run_recommendations.keys() & {*insights["ranked"]}
    order = [name for name in _first_to_last(leaderboard, model, seed, judged) if name in able]
    lists, _ = readable({name: run_recommendations[name] for name in order}, "recommendations", LISTS)
    shown = list(lists)
    users = (
        examples.examples(
            test_set.histories,
            run_ranks[shown[0]]().to_arrow(),
            {name.split("/")[0]: lists[name].to_arrow() for name in shown},
            items.to_arrow(),
            item_ids=vocabulary.ids,
            seed=seed,
            users=report.examples,
            history=report.history,
            top=report.recommended,
        )
        if shown
        else []
    )
    described, unread = sections(qualities, id_figures)
    board = leaderboard.filter(leaderboard["protocol"] == judged)
    studied = studies(run_contexts, run_studies, board, protocol=judged)
    page = html.page(
        {"name": dataset, **datasets[dataset]},
        metrics.values(),
        profile=data_profile,
        steps=ingest_steps,
        curves=curves_of(run_curves),
        examples=users,
        semantic_ids=described,
        insights=insights,
        studies=studied,
        geometry=geometry_tables.section(geometry, protocol["id"]),
        notes=[*_notes(ingest_steps, protocol), *unread],
        metric=report.metric,
    )
    title = f"{datasets[dataset].get('title', dataset)}: {len(comparable)} runs under protocol {judged}"
    text = summary.summary(
        leaderboard, users, title=title, links={}, ids=[each.line for each in described], metric=report.metric
    )
    return page, text


def _protocols(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """By run, of those whose metrics can be read."""
    from recpipe.reporting.runs import problem

    return {name: each["protocol"] for name, each in metrics.items() if not problem(each)}


def _protocol_shown(
    protocols: Mapping[str, Mapping[str, Any]], model: str, seed: int, split: Mapping[str, Any]
) -> str:
    """Id of the protocol that the asked-for model was last judged under, or else that of the split on disk.

    The former only where it cuts the data as the split does, whose histories stand beside the lists.
    """
    from recpipe.data.protocol import EVALUATION_FIELDS

    cut = {name: value for name, value in split.items() if name not in {*EVALUATION_FIELDS, "id"}}
    for name in model.split("+"):
        found = protocols.get(f"{name}/seed_{seed}", {})
        if found and all(found.get(key) == value for key, value in cut.items()):
            return str(found["id"])
    return str(split["id"])


def _notes(ingest_steps: Any, protocol: Mapping[str, Any]) -> list[str]:
    """What the page must say of the data: that they are not those of the split, after ingest alone."""
    if list(steps_of(ingest_steps)) == list(protocol["steps"]):
        return []
    note = (
        "The log was ingested anew, with other steps, after it was split: the profile and the steps below are not "
        "of the data behind the numbers. Run `kedro run --pipelines=train,evaluate,report`"
    )
    log.warning("%s", note)
    return [note]


def _first_to_last(leaderboard: Any, model: str, seed: int, protocol: str) -> list[str]:
    """Runs of `seed` whose lists are shown: the asked-for models first, then the rest by rank."""
    if not leaderboard.height:
        return []
    ranked = leaderboard.filter(leaderboard["protocol"] == protocol)["name"].to_list()
    asked = [name for name in model.split("+") if name in ranked]
    return [f"{name}/seed_{seed}" for name in dict.fromkeys([*asked, *ranked])]


def _vectors(vocabulary: Any, *embeddings: Any) -> Any:
    """Vectors of the items and which have one, of the first embeddings that are there; None without any."""
    for found in embeddings:
        if hasattr(found, "vectors"):  # what cannot be read is not of that kind
            place = found.rows(vocabulary.ids)
            return found.vectors[place].astype("float64"), (place >= 0) & found.present[place]
    return None


def _own(metrics: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """Without those of another data set, whose runs were put beside ours; what cannot be read says nothing of that."""
    return {
        name: each
        for name, each in metrics.items()
        if not isinstance(each, Mapping) or each.get("dataset") in (None, dataset)
    }


def _all(runs: Loads, insights: Mapping[str, Any]) -> list[Any]:
    return [*_own(readable(runs, "metrics")[0], insights["dataset"]).values()]
