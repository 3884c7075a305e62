"""Items held out by the conf: the split node chooses them by id and neither training nor validation has them."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from recpipe.config import DataPaths
from recpipe.data.protocol import Protocol
from recpipe.data.splits import held_out_items
from recpipe.pipelines.train import split_sequences

INGEST: dict[str, Any] = {"engine": {}}
STEPS = pl.DataFrame({"step": [0], "name": ["raw"], "detail": ["{}"]})


@pytest.fixture
def log_tables(tmp_path):
    """What the split node is given, but for the protocol: 40 users of 30 items, six events each."""
    path = tmp_path / "interactions.parquet"
    rows = [(f"u{u}", f"i{(u * 7 + n * n) % 30}", n, u * 9 + n) for u in range(40) for n in range(6)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "order"], orient="row").write_parquet(path)
    return path, pl.DataFrame({"user_id": ["u0"]}), STEPS


def test_the_items_of_the_protocol_are_in_the_test_fold_alone_and_counted(log_tables, tmp_path) -> None:
    paths = DataPaths(tmp_path, tmp_path, "shop")
    data, test = split_sequences(*log_tables, Protocol(dataset="shop", held_out_items=0.2), INGEST, paths)
    sizes = data.protocol_fields["sizes"]
    held_out = set(held_out_items(data.vocabulary, data.protocol).tolist())
    assert sizes["held_out_items"] == len(held_out) > 0
    for part in (data.train_set, data.valid_set.histories, data.valid_set.targets):
        assert not held_out & set(part.items.tolist())
    hits = [target in held_out for target in test.targets.items.tolist()]
    assert sizes["held_out_test_users"] == sum(hits) > 0
    usual, usual_test = split_sequences(*log_tables, Protocol(dataset="shop"), INGEST, paths)
    assert (test.histories.items == usual_test.histories.items).all()
    assert held_out & set(test.histories.items.tolist())
    assert data.protocol.id != usual.protocol.id
    assert data.protocol.fingerprint == usual.protocol.fingerprint
