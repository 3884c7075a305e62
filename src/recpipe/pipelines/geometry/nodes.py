"""Node of geometry: what is on disk, handed to recpipe.evaluation.geometry."""

from __future__ import annotations

import logging
from typing import Any

from recpipe.pipelines.blocks import GeometryBlock, ReportBlock
from recpipe.pipelines.report.loads import Loads, readable

log = logging.getLogger(__name__)


def measure_geometry(
    bundles: Loads,
    runs: Loads,
    vocabulary: Any,
    train_set: Any,
    items: Any,
    protocol: dict[str, Any],
    text_vectors: Any,
    image_vectors: Any,
    dataset: str,
    report: ReportBlock,
    geometry: GeometryBlock,
    seed: int,
    *after: Any,
) -> dict[str, Any]:
    """The tables of items of every model and encoder beside random ones; `after` is only waited for."""
    from recpipe.data.protocol import Protocol
    from recpipe.evaluation.geometry.study import Items, Settings
    from recpipe.evaluation.geometry.study import geometry as study
    from recpipe.evaluation.lists import Popularity

    titles = dict(items.select("item_id", "title").iter_rows())
    about = Items(
        vocabulary,
        [titles.get(item) or str(item) for item in vocabulary.ids],
        Popularity.of(train_set, len(vocabulary)).events,
        Protocol.from_dict(protocol),
    )
    problems: list[str] = []
    encoders = [
        found
        for name, vectors in (("text", text_vectors), ("image", image_vectors))
        if (found := _encoder(name, vectors, vocabulary, problems)) is not None
    ]
    found = study(
        {name: bundles[name] for name in _chosen(bundles, geometry.models, dataset)},
        encoders,
        about,
        quality=_quality(runs, report.metric, protocol["id"]),
        seed=seed,
        settings=Settings(**geometry.model_dump(exclude={"models"})),
    )
    found |= {"protocol": protocol["id"], "seed": seed, "problems": [*problems, *found["problems"]]}
    for problem in found["problems"]:
        log.warning("%s", problem)
    return found


def _chosen(bundles: Loads, asked: str, dataset: str) -> list[str]:
    """Runs of the models `a+b`, or of all. Raises ValueError that says what there is, and how to get what is not."""
    there = sorted({run.split("/")[0] for run in bundles})
    names = there if asked == "all" else asked.split("+")
    for name in names:
        if name not in there:
            raise ValueError(
                f"there is no trained {name} of {dataset}, only {', '.join(there) or 'nothing'}: "
                f"`kedro run --pipelines=train,evaluate --params dataset={dataset},model={name}` makes it"
            )
    return [run for run in bundles if run.split("/")[0] in names]


def _encoder(name: str, found: Any, vocabulary: Any, problems: list[str]) -> Any:
    """None where there are no vectors, or, which is a problem, none that can be read."""
    from recpipe.evaluation.geometry.tables import encoder_source

    if found is None:
        return None
    if not hasattr(found, "vectors"):
        problems.append(f"the {name} vectors are left out: {found.error}")
        return None
    rows = found.rows(vocabulary.ids)
    return encoder_source(f"{name} encoder", found.vectors[rows], (rows >= 0) & found.present[rows])


def _quality(runs: Loads, metric: str, protocol: str) -> dict[str, float]:
    """By run the metric on the validation fold, of those judged under the protocol of the split; test where a model
    was trained on that fold too. It only says which model is shown first.
    """
    from recpipe.reporting.runs import problem

    found = {}
    for name, metrics in readable(runs, "metrics")[0].items():
        if problem(metrics) or metrics["protocol"]["id"] != protocol:
            continue
        value = (metrics.get("valid") or {}).get(metric, metrics["test"].get(metric))
        if value is not None:
            found[name] = float(value)
    return found
