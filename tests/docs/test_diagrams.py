"""Diagrams: the files are those of the generator, splits as the code has them, folders and pipelines that exist."""

import numpy as np
import pytest
from docs.generators import diagrams

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Sequences
from recpipe.data.splits import split
from recpipe.pipelines.wiring import ON_REQUEST, STAGES


@pytest.mark.parametrize("name", diagrams.diagrams())
def test_files_are_those_of_the_generator(name):
    # after a change of the layers in pyproject.toml: python -m docs.generators.diagrams
    assert (diagrams.FOLDER / name).read_text(encoding="utf-8") == diagrams.diagrams()[name]


@pytest.mark.parametrize(
    ("rule", "fields"),
    [
        (diagrams.leave_one_out_roles, {"split": "leave_one_out"}),
        (diagrams.temporal_roles, {"split": "temporal", "valid": "1970-01-01T00:01:00", "test": "1970-01-01T00:01:19"}),
    ],
)
def test_splits_are_drawn_as_the_code_splits(rule, fields):
    assert (diagrams.VALID_FROM, diagrams.TEST_FROM) == (60, 79)  # seconds of the dates above
    users, times = list(diagrams.EVENTS), [np.array(each) for each in diagrams.EVENTS.values()]
    flat = np.concatenate(times)
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in times])])
    items = np.arange(1, len(flat) + 1, dtype=np.int32)  # an item of its own for every event
    log = Sequences(users, items, offsets=offsets, timestamps=flat)
    parts = split(log, Protocol(dataset="shop", **fields))
    drawn = np.concatenate([rule(each) for each in diagrams.EVENTS.values()])
    for name, targets in (("train", parts.train), ("valid", parts.valid.targets), ("test", parts.test.targets)):
        assert sorted(targets.items) == list(items[drawn == name])


def test_stages_are_those_of_a_whole_run():
    assert tuple(name for name, _, _ in diagrams.STAGES if name) == STAGES
    assert {"refit", "recommend"} <= set(ON_REQUEST)


def test_layers_are_read_from_the_import_contract():
    layers = diagrams.layers()
    assert layers[0][0] == "pipeline_registry"
    assert layers[-1] == ["progress"]
    assert ["decoding", "layers"] in layers
