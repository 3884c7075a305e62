"""Music4All-Onion listening events: tab-separated user, track and time, one play per line.

Moscati et al., Music4All-Onion: A Large-Scale Multi-faceted Content-Centric Music Recommendation Dataset, CIKM 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ibis

from recpipe.data.files.delimited_rows import Dialect
from recpipe.data.files.log_table import LogColumns, create_log
from recpipe.data.files.tables import RawTables
from recpipe.data.files.text_files import delimited_source


@dataclass(frozen=True)
class Options:
    """timestamp: ``iso`` as published (``2019-05-01 17:31``), or the unit or strptime format of a derived file."""

    timestamp: str = "iso"


def read(options: Options, files: Mapping[str, Sequence[str]], con: ibis.BaseBackend) -> RawTables:
    """Read the plays. Tracks have no titles: the texts of the songs are under another licence."""
    source = delimited_source(con, files["interactions"], dialect=Dialect("\t"))
    source.check_columns(("user_id", "track_id", "timestamp"))
    columns = LogColumns("user_id", "track_id", timestamp='"timestamp"', unit=options.timestamp)
    return RawTables(create_log(con, source, columns))
