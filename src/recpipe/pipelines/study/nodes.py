"""Node of study: trainings of recpipe.training, one after the other, of which none is made twice."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from recpipe.pipelines.blocks import cold_users_of, study_of

log = logging.getLogger(__name__)


def vary_model(
    name: str,
    study: str,
    studies: dict[str, Any],
    model: dict[str, Any],
    items: Any,
    cold_users: dict[str, Any],
    datasets: dict[str, Any],
    **given: Any,
) -> dict[str, Any]:
    """A row of numbers for every variant of the study; `given` as of `train_model`.

    Each row is kept in the work folder as soon as it is there, so that a study that was cut off goes on.
    """
    from recpipe.experiments.material import Material
    from recpipe.models.registry import resolve
    from recpipe.training.variants import variants

    given |= {"items": items.to_arrow(), "cold_users": cold_users_of(cold_users, datasets, given["dataset"])}
    asked, material = study_of(study, studies), Material(**given)
    made, left_out = variants(asked, resolve(model, material.dataset), material.train, material.side)
    made, too_long = _within(made, material.judged.history)
    for each, why in (left_out | too_long).items():
        log.info("%s of %s: left out, as %s", each, name, why)
    rows = []
    for number, variant in enumerate(made, 1):
        log.info("study %s of %s, %s of %s: %s", study, name, number, len(made), variant.name)
        rows.append(_row(name, variant, material, material.work_folder / study))
    return {
        "study": study,
        "model": name,
        "seed": material.seed,
        "setting": asked.setting,
        "protocol": material.judged.id,
        "metric": material.settings(name, made[0].spec).metric if made else None,
        "rows": rows,
        "left_out": left_out | too_long,
    }


def _within(made: list[Any], history: int) -> tuple[list[Any], dict[str, str]]:
    """Windows beyond the protocol's history read nothing more: they are no variant."""
    over = {each.name for each in made if (each.changed.get("train.window") or 0) > history}
    why = dict.fromkeys(sorted(over, key=int), f"protocol.history is {history}")
    return [each for each in made if each.name not in over], why


def _row(name: str, variant: Any, material: Any, folder: Path) -> dict[str, Any]:
    """What a variant came to, from its file where it was trained before under the same settings and data."""
    place = folder / "".join(sign if sign.isalnum() else "_" for sign in variant.name)
    kept = place / "result.json"
    about = json.loads(json.dumps(material.made_of(variant.spec)))
    if kept.is_file() and (found := json.loads(kept.read_text()))["about"] == about:
        row: dict[str, Any] = found["row"]
        return row
    trained, _ = material.trained(name, variant.spec, folder=place)
    row = {
        "name": variant.name,
        "value": variant.value,
        "changed": dict(variant.changed),
        **_numbers(trained, material, variant.spec, name),
    }
    place.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"about": about, "row": row}))
    return row


def _numbers(trained: Any, material: Any, spec: Any, name: str) -> dict[str, Any]:
    """The best validation, and what it cost; of item vectors, how many dimensions they make use of."""
    from recpipe.evaluation.context import Question
    from recpipe.evaluation.geometry.spectrum import participation_ratio, spectrum

    metric = material.settings(name, spec).metric
    value = Question(material.valid_set, material.judged, metric).value(trained.model)
    try:
        vectors = trained.model.item_vectors()[1:].detach().cpu().double().numpy()
        used = participation_ratio(spectrum(vectors))
    except ValueError:  # it has none
        used = None
    cost = trained.cost
    kept = ("train_seconds", "seconds_per_epoch", "tokens_per_second", "epochs", "best_epoch", "parameters")
    return {metric: value, "used_dimensions": used, **{key: cost.get(key) for key in kept}}
