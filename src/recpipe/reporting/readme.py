"""Writes the leaderboards of the data sets on disk between two marks in README.md: `make leaderboard`.

Tables there of data sets that are not on disk stay: runs are made on more than one machine.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import polars as pl

from recpipe.reporting.leaderboard import to_markdown

START, END = "<!-- leaderboard -->", "<!-- /leaderboard -->"


def rewritten(text: str, boards: list[pl.DataFrame]) -> str:
    """`text` with the tables of these data sets, between the marks, replaced or added behind those that are there.

    Raises ValueError where the marks are not there once.
    """
    pattern = re.compile(f"{re.escape(START)}\n?(.*?){re.escape(END)}", re.DOTALL)
    found = pattern.findall(text)
    if len(found) != 1:
        raise ValueError(f"README.md needs the marks {START} and {END} once, around what is to be replaced")
    tables = _by_dataset(found[0])
    for board in boards:
        tables |= _by_dataset(to_markdown(board))
    return pattern.sub(lambda _: f"{START}\n{''.join(tables.values())}{END}", text)


def _by_dataset(text: str) -> dict[str, str]:
    """Tables by the data set that their first line names, each ending with an empty line but for the last."""
    tables: dict[str, str] = {}
    for table in re.split(r"(?m)^(?=\*\*.+\*\*, protocol `)", text):
        if named := re.match(r"\*\*(.+?)\*\*, protocol `", table):
            tables[named[1]] = tables.get(named[1], "") + table.rstrip("\n") + "\n\n"
    return tables


def main() -> None:
    """Reads every leaderboard.parquet under data/08_reporting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "datasets", nargs="*", help="folders of data/08_reporting, in this order; default all"
    )
    parser.add_argument("--reporting", type=Path, default=Path("data/08_reporting"))
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    arguments = parser.parse_args()
    names = arguments.datasets or sorted(
        path.parent.name for path in arguments.reporting.glob("*/leaderboard.parquet")
    )
    if not names:
        parser.error(f"no leaderboard under {arguments.reporting}; run `kedro run` first")
    boards = [pl.read_parquet(arguments.reporting / name / "leaderboard.parquet") for name in names]
    arguments.readme.write_text(rewritten(arguments.readme.read_text(), boards))


if __name__ == "__main__":
    main()
