"""Music4All-Onion listening events: tab-separated user, track and time, one play per line.

Moscati et al., Music4All-Onion: A Large-Scale Multi-faceted Content-Centric Music Recommendation Dataset,
CIKM 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recpipe.data.files.delimited import delimited
from recpipe.data.files.tables import Columns, RawTables, interactions

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend

COLUMNS = ("user_id", "track_id", "timestamp")


@dataclass(frozen=True)
class Options:
    """timestamp: iso as published (`2019-05-01 17:31`), or a unit or strptime format of a derived file."""

    timestamp: str = "iso"


def read(options: Options, files: Mapping[str, Sequence[str]], con: Backend) -> RawTables:
    """The plays; tracks have no titles here, the songs' texts come under another licence."""
    source = delimited(con, files["interactions"], delimiter="\t", quote="")
    missing = [name for name in COLUMNS if name not in source.types]
    if missing:
        raise ValueError(f"{source.where} has no column {missing[0]!r}; found: {', '.join(source.types)}")
    columns = Columns("user_id", "track_id", timestamp='"timestamp"', unit=options.timestamp)
    return RawTables(interactions(con, source, columns))
