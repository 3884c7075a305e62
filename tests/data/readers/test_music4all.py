"""Music4All-Onion plays as published."""

from __future__ import annotations

from pathlib import Path

from tests.data.conftest import Reading, rows


def test_music4all(tmp_path: Path, reading: Reading) -> None:
    path = tmp_path / "plays.tsv"
    path.write_text('user_id\ttrack_id\ttimestamp\nuser_1\t"x\t2019-05-01 17:31\nuser_1\ty\tnever\n')
    first, second = rows(reading("music4all", {}, interactions=path).interactions)
    assert (first["item_id"], first["timestamp"], first["problem"]) == ('"x', 1556731860, None)
    assert second["problem"] == "timestamp not in the format iso: 'never'"
