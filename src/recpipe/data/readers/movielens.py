"""MovieLens in every published layout: 100K (tabs, latin-1), 1M and 10M (``::``), 20M and later (CSV).

Harper and Konstan, The MovieLens Datasets: History and Context, ACM TiiS 2015.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ibis

from recpipe.config import check_known
from recpipe.data.files.delimited_rows import Dialect
from recpipe.data.files.log_table import LogColumns, create_log
from recpipe.data.files.tables import Entities, RawTables, create_entities, identifier, literal, literals
from recpipe.data.files.text_files import delimited_source

GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
OCCUPATIONS_1M = (
    "other", "academic/educator", "artist", "clerical/admin", "college/grad student", "customer service",
    "doctor/health care", "executive/managerial", "farmer", "homemaker", "K-12 student", "lawyer",
    "programmer", "retired", "sales/marketing", "scientist", "self-employed", "technician/engineer",
    "tradesman/craftsman", "unemployed", "writer",
)  # fmt: skip
CSV = Dialect(",", quote='"')
RATING = ("user", "item", "rating", "timestamp")
USER_100K = ("id", "age", "gender", "occupation", "zip_code")
USER_1M = ("id", "gender", "age", "occupation", "zip_code")
MOVIE_100K = ("item", "title", "released", "released_on_video", "url", *GENRES_100K)


@dataclass(frozen=True)
class Options:
    """layout: 100k, 1m, 10m or csv (20M, 25M, 32M, latest, latest-small)."""

    layout: str = "csv"

    def __post_init__(self) -> None:
        check_known(self.layout, ("100k", "1m", "10m", "csv"), what="MovieLens layout")


def read(options: Options, files: Mapping[str, Sequence[str]], con: ibis.BaseBackend) -> RawTables:
    """Read ratings, films with genres, and for 100K and 1M users with age, gender and occupation."""
    log = _ratings(options.layout, files["interactions"], con)
    items = _films(options.layout, files["items"], con) if files.get("items") else None
    users = _users(options.layout, files["users"], con) if files.get("users") else None
    return RawTables.of(log, items, users)


def _ratings(layout: str, paths: Sequence[str], con: ibis.BaseBackend) -> ibis.Table:
    if layout == "csv":
        source = delimited_source(con, paths, dialect=CSV, single_line=("userId", "movieId", "rating", "timestamp"))
        user, item = "userId", "movieId"
        source.check_columns((user, item, "rating", "timestamp"))
    else:
        source = delimited_source(con, paths, dialect=Dialect("\t" if layout == "100k" else "::"), columns=RATING)
        user, item = '"user"', "item"
    return create_log(con, source, LogColumns(user, item, timestamp="timestamp", numbers={"rating": "rating"}))


def _films(layout: str, paths: Sequence[str], con: ibis.BaseBackend) -> Entities:
    item, genres = "item", "string_split(genres, '|')"
    if layout == "csv":
        source = delimited_source(con, paths, dialect=CSV, single_line=("movieId",))
        item = "movieId"
    elif layout == "100k":
        source = delimited_source(con, paths, dialect=Dialect("|"), columns=MOVIE_100K, encoding="latin-1")
        flags = ", ".join(f"CASE WHEN {identifier(name)} = '1' THEN {literal(name)} END" for name in GENRES_100K)
        genres = f"list_filter([{flags}], lambda genre: genre IS NOT NULL)"
    else:
        encoding, names = "latin-1" if layout == "1m" else "utf-8", ("item", "title", "genres")
        source = delimited_source(con, paths, dialect=Dialect("::"), columns=names, encoding=encoding)
    genres = f"list_filter({genres}, lambda genre: genre NOT IN ('', 'unknown', '(no genres listed)'))"
    text = f"concat_ws('. ', title, nullif(array_to_string({genres}, ', '), ''))"
    columns = {"item_id": item, "title": "title", "text": text, "genres": genres}
    return create_entities(con, source, columns, key="item_id")


def _users(layout: str, paths: Sequence[str], con: ibis.BaseBackend) -> Entities | None:
    occupation = "occupation"
    if layout == "100k":
        source = delimited_source(con, paths, dialect=Dialect("|"), columns=USER_100K)
    elif layout == "1m":
        source = delimited_source(con, paths, dialect=Dialect("::"), columns=USER_1M)
        occupation = f"{literals(OCCUPATIONS_1M)}[TRY_CAST(occupation AS INTEGER) + 1]"
    else:
        return None
    columns = {"user_id": "id", "age": "TRY_CAST(age AS INTEGER)", "gender": "gender"}
    columns |= {"occupation": occupation, "zip_code": "zip_code"}
    return create_entities(con, source, columns, key="user_id")
