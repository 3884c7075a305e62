"""The evaluation that a bundle is known by: of its own training, under the protocol of that where there is one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from recpipe.training.newest import evaluation_of

BUNDLE = SimpleNamespace(protocol=SimpleNamespace(id="own"), training={"cost": {"train_seconds": 2.5}})


def write(path: Path, *evaluations: tuple[str, float]) -> None:
    """Versions of metrics.json, oldest first: protocol id and seconds of the training."""
    for number, (protocol, seconds) in enumerate(evaluations):
        file = path / f"2026-01-0{number + 1}T00.00.00.000Z" / "metrics.json"
        file.parent.mkdir(parents=True)
        values = {"protocol": {"id": protocol}, "cost": {"train_seconds": seconds, "users": 1}, "number": number}
        file.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("evaluations", "expected"),
    [
        ([("own", 2.5), ("other", 2.5)], 0),
        ([("own", 2.5), ("own", 2.5), ("other", 2.5)], 1),
        ([("own", 1.0), ("other", 2.5)], 1),  # the first is of an earlier training
        ([("other", 2.5), ("another", 2.5)], 1),
        ([("own", 1.0)], None),
        ([], None),
    ],
)
def test_the_newest_of_its_training_and_protocol_counts(tmp_path, evaluations, expected) -> None:
    write(tmp_path / "metrics.json", *evaluations)
    metrics = evaluation_of(tmp_path / "metrics.json", BUNDLE)
    assert (metrics and metrics["number"]) == expected


@pytest.mark.parametrize(("damaged", "expected"), [(0, None), (1, 0)], ids=["the only one", "the newer one"])
def test_a_damaged_version_is_left_out_with_a_warning(tmp_path, caplog, damaged, expected) -> None:
    write(tmp_path / "metrics.json", *[("own", 2.5)] * (damaged + 1))
    sorted((tmp_path / "metrics.json").glob("*/metrics.json"))[damaged].write_text('{"protocol": ')
    metrics = evaluation_of(tmp_path / "metrics.json", BUNDLE)
    assert (metrics and metrics["number"]) == expected
    assert "an evaluation is left out, as it cannot be read" in caplog.text
