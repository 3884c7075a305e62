"""What fitting may see of a split, as a folder: read part by part, written so that a crash is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.synthetic import random_sequences

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Sequences, Vocabulary
from recpipe.data.splits import TrainingData, split


@pytest.fixture
def data() -> TrainingData:
    protocol = Protocol(dataset="d")
    parts = split(random_sequences(12, 8), protocol)
    described = {"id": protocol.id, **protocol.to_dict(), "sizes": parts.sizes()}
    return TrainingData(
        described, Vocabulary(np.array([f"i{n}" for n in range(8)], object)), parts.train, parts.valid
    )


def test_what_is_written_is_read(data: TrainingData, tmp_path: Path) -> None:
    data.write(tmp_path)
    again = TrainingData.read(tmp_path)
    assert again.protocol_fields == data.protocol_fields
    assert again.protocol == data.protocol
    assert again.vocabulary.ids.tolist() == data.vocabulary.ids.tolist()
    np.testing.assert_array_equal(again.train_set.items, data.train_set.items)
    np.testing.assert_array_equal(again.valid_set.targets.items, data.valid_set.targets.items)


def test_parts_are_read_when_they_are_needed(data: TrainingData, tmp_path: Path, monkeypatch) -> None:
    data.write(tmp_path)
    again = TrainingData.read(tmp_path)
    monkeypatch.setattr(Sequences, "read", lambda path: pytest.fail(f"{path} was read"))
    assert again.protocol.dataset == "d"
    assert len(again.valid_set) == len(data.valid_set)


def test_a_crash_while_saving_leaves_a_protocol_that_refuses_older_bundles(
    data, tmp_path, monkeypatch
) -> None:
    data.write(tmp_path)
    other = TrainingData(
        {**data.protocol_fields, "fingerprint": "other"}, data.vocabulary, data.train_set, data.valid_set
    )
    monkeypatch.setattr(Vocabulary, "write", lambda self, path: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        other.write(tmp_path)
    assert TrainingData.read(tmp_path).protocol.data_differences(data.protocol) == ["fingerprint"]


def test_a_missing_file_is_named(data: TrainingData, tmp_path: Path) -> None:
    data.write(tmp_path)
    (tmp_path / "valid_set.parquet").unlink()
    with pytest.raises(
        FileNotFoundError, match="valid_set.parquet is missing; run `kedro run --pipelines=train`"
    ):
        TrainingData.read(tmp_path)
