"""The tutorial on competitions: its data set and its commands on small files, and the submission that comes out."""

from __future__ import annotations

import csv
import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.docs.snippets import run_page

pytestmark = pytest.mark.slow

SESSIONS, ITEMS = 60, 15


def write_sessions(path: Path, histories: dict[str, list[int]], *, extra: str = "") -> None:
    lines = ["session;item;time"]
    for session, items in histories.items():
        times = (datetime.fromtimestamp(1_700_000_000 + 60 * t, UTC).strftime("%Y-%m-%d %H:%M:%S") for t in range(99))
        lines += [f"{session};p{item};{time}" for item, time in zip(items, times, strict=False)]
    text = "\n".join(lines) + "\n" + extra
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.fixture
def competition(project: Path, page_project: Path) -> tuple[Path, list[str]]:
    """A project after the commands of the tutorial, on small files; sessions of the sample, in order."""
    raw = page_project / "data" / "01_raw" / "shop"
    raw.mkdir()
    rng = np.random.default_rng(0)
    walks = {f"s{n}": ((rng.integers(ITEMS) + np.arange(rng.integers(4, 9))) % ITEMS).tolist() for n in range(SESSIONS)}
    write_sessions(raw / "train.csv", walks)
    bad = "t0;p3;yesterday\n;p4;2024-01-01 00:00:00\n"
    test = {f"t{n}": [n % ITEMS, (n + 1) % ITEMS] for n in range(12)}
    write_sessions(raw / "test_sessions.csv.gz", test, extra=bad)
    sessions = [*reversed(test), "never_seen"]
    sample = "session,predictions\n" + "".join(f"{session},\n" for session in sessions)
    (raw / "sample_submission.csv").write_text(sample)
    run_page(project / "docs" / "tutorials" / "competition.md", page_project)
    return page_project, sessions


def test_the_commands_of_the_tutorial_make_the_submission(competition) -> None:
    folder, sessions = competition
    output, after_refit = sorted((folder / "data/07_model_output/shop/item_knn/seed_42/recommendations").iterdir())
    assert (output / "submission.csv").read_text() != (after_refit / "submission.csv").read_text()
    header, *rows = csv.reader((output / "submission.csv").open(newline=""))
    assert header == ["session", "predictions"]
    assert [session for session, _ in rows] == sessions
    lists = {session: items.split(" ") for session, items in rows}
    assert all(len(set(items)) == 12 for items in lists.values())
    for n in range(12):  # items of the history are excluded, their neighbours come first
        assert not {f"p{n}", f"p{n + 1}"} & set(lists[f"t{n}"])
    neighbours = [{f"p{(n - 1) % ITEMS}", f"p{(n + 2) % ITEMS}"} & set(lists[f"t{n}"][:3]) for n in range(12)]
    assert sum(map(bool, neighbours)) > 8
    table = pl.read_parquet(output / "recommendations.parquet")
    assert dict(table.group_by("user_id").agg(pl.col("source").first()).iter_rows()) == {
        session: "cold_users" if session == "never_seen" else "model" for session in sessions
    }
    assert set(pl.read_parquet(output / "quarantine.parquet")["reason"].str.split(":").list.first()) == {
        "timestamp not in the format iso", "empty user_id"
    }  # fmt: skip
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["users"], summary["events"], summary["cold_users"]) == (13, 24, 1)
