"""Sampling steps and their rows of the step table against plain Python on random logs; DuckDB against Spark."""

from __future__ import annotations

import hashlib
import math
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recpipe.data import sampling
from recpipe.data.engines import connect, write_parquet
from recpipe.data.files.tables import RawTables
from recpipe.data.interactions import ingest

Row = dict[str, Any]
Rows = list[Row]
TYPES = {"user_id": pa.string(), "item_id": pa.string(), "timestamp": pa.int64()}
SCHEMA = pa.schema(TYPES | {"rating": pa.float64(), "event": pa.string(), "order": pa.int64()})
EVENTS = ("view", "view", "cart", "it's")


def random_log(seed: int, *, rows: int = 300, untimed: float = 0.1) -> Rows:
    """Skewed users and items, many equal times, some without a time, orders with holes and not by time."""
    draw = random.Random(seed)
    log = []
    for order in draw.sample(range(rows * 3), rows):
        timed = draw.random() >= untimed
        log.append(
            {
                "user_id": f"ü'{int(25 * draw.random() ** 2)}",
                "item_id": f'i"{int(30 * draw.random() ** 2)}',
                "timestamp": draw.randrange(1_500_000_000, 1_500_000_000 + draw.choice([3, 100_000]))
                if timed
                else None,
                "rating": draw.choice([1.0, 2.0, 2.5, 4.0, 5.0, None]),
                "event": EVENTS[order * 7 % 4],
                "order": order,
            }
        )
    return sorted(log, key=lambda row: row["order"])


# The same steps once more, in plain Python ---------------------------------------------------------------------------


def when(row: Row) -> tuple[int, int]:
    return (-1 if row["timestamp"] is None else row["timestamp"], row["order"])


def groups(rows: Rows, *names: str) -> list[Rows]:
    grouped: dict[tuple[Any, ...], Rows] = defaultdict(list)
    for row in rows:
        grouped[tuple(row[name] for name in names)].append(row)
    return list(grouped.values())


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def draw(row: Row, seed: int) -> str:
    return md5(f"{row['user_id']} {row['item_id']} {row['order']} {seed}")


def below(digest: str, share: float) -> bool:
    return int(digest[:8], 16) / 2**32 < share


def duplicates(rows: Rows, keep: str = "first", by: tuple[str, ...] = ("user_id", "item_id")) -> Rows:
    if keep == "none":
        return [group[0] for group in groups(rows, *by) if len(group) == 1]
    return [(min if keep == "first" else max)(group, key=when) for group in groups(rows, *by)]


def k_core(rows: Rows, users: int = 1, items: int = 1) -> Rows:
    while True:
        by_user, by_item = Counter(r["user_id"] for r in rows), Counter(r["item_id"] for r in rows)
        remaining = [r for r in rows if by_user[r["user_id"]] >= users and by_item[r["item_id"]] >= items]
        if len(remaining) == len(rows):
            return rows
        rows = remaining


def cap_per_user(rows: Rows, n: int, keep: str = "last", seed: int = 0) -> Rows:
    def key(row: Row) -> Any:
        return (draw(row, seed), row["order"]) if keep == "random" else when(row)

    ranked = (sorted(group, key=key, reverse=keep == "last") for group in groups(rows, "user_id"))
    return [row for group in ranked for row in group[:n]]


def stratified(rows: Rows, share: float, by: str, seed: int, of: str = "rows", strata: int = 10) -> Rows:
    if by != "user_activity":
        return [row for group in groups(rows, by) for row in first_share(group, share, lambda r: draw(r, seed))]
    activity = Counter(row["user_id"] for row in rows)
    users = sorted(activity, key=lambda user: (activity[user], user.encode()))
    size, extra = divmod(len(users), strata)  # ntile: the first groups take one more
    sizes = [size + (place < extra) for place in range(strata)]
    numbers = [number for number, count in enumerate(sizes) for _ in range(count)]
    stratum = dict(zip(users, numbers, strict=True))
    if of == "users":
        tiles = groups([{"user_id": user, "tile": stratum[user]} for user in users], "tile")
        sample = {
            u["user_id"] for tile in tiles for u in first_share(tile, share, lambda u: md5(f"{u['user_id']} {seed}"))
        }
        return [row for row in rows if row["user_id"] in sample]
    return stratified([row | {"tile": stratum[row["user_id"]]} for row in rows], share, "tile", seed)


def first_share(group: Rows, share: float, key: Callable[[Row], Any]) -> Rows:
    return sorted(group, key=key)[: max(1, math.floor(len(group) * share + 0.5))]


CONDITIONS: dict[str, Callable[[Row], bool]] = {
    "rating >= 2.5": lambda r: r["rating"] is not None and r["rating"] >= 2.5,
    "event in ['cart', \"it's\"] or rating is null": lambda r: r["event"] != "view" or r["rating"] is None,
}
ORACLES: dict[str, Callable[..., Rows]] = {
    "duplicates": duplicates,
    "min_rating": lambda rows, at_least: [r for r in rows if r["rating"] is not None and r["rating"] >= at_least],
    "where": lambda rows, condition: [r for r in rows if CONDITIONS[condition](r)],
    "min_events": lambda rows, users: [r for g in groups(rows, "user_id") if len(g) >= users for r in g],
    "k_core": k_core,
    "last": lambda rows, k: cap_per_user(rows, n=k),
    "cap_per_user": cap_per_user,
    "hash_users": lambda rows, share, salt="": [r for r in rows if below(md5(r["user_id"] + salt), share)],
    "random_rows": lambda rows, share, seed: [r for r in rows if below(draw(r, seed), share)],
    "systematic": lambda rows, every, offset=0: sorted(rows, key=lambda r: r["order"])[offset::every],
    "stratified": stratified,
    "time_window": lambda rows, start=0, end=2**40: [
        r for r in rows if r["timestamp"] is not None and start <= r["timestamp"] < end
    ],
}
STEPS: list[dict[str, Any]] = [
    {"step": "duplicates"},
    {"step": "duplicates", "keep": "last"},
    {"step": "duplicates", "keep": "none"},
    {"step": "duplicates", "keep": "last", "by": ["user_id", "timestamp"]},
    {"step": "min_rating", "at_least": 2.5},
    *({"step": "where", "condition": condition} for condition in CONDITIONS),
    {"step": "min_events", "users": 8},
    {"step": "k_core", "users": 5, "items": 8},
    {"step": "k_core", "items": 9},
    {"step": "last", "k": 4},
    {"step": "cap_per_user", "n": 9},
    {"step": "cap_per_user", "n": 7, "keep": "first"},
    {"step": "cap_per_user", "n": 6, "keep": "random", "seed": 3},
    {"step": "hash_users", "share": 0.6, "salt": "s'"},
    {"step": "hash_users", "share": 1},
    {"step": "random_rows", "share": 0.7, "seed": 1},
    {"step": "stratified", "share": 0.4, "by": "rating", "seed": 2},
    {"step": "stratified", "share": 0.01, "by": "user_id", "seed": 2},
    {"step": "stratified", "share": 0.5, "by": "user_activity", "seed": 5, "strata": 4},
    {"step": "stratified", "share": 0.5, "by": "user_activity", "seed": 5, "strata": 4, "of": "users"},
    {"step": "systematic", "every": 3, "offset": 1},
    {"step": "time_window", "start": 1_500_000_001, "end": 1_500_040_000},
]


def step_id(step: dict[str, Any]) -> str:
    return "-".join(str(value) for value in step.values())


def oracle(rows: Rows, step: dict[str, Any]) -> Rows:
    arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in step.items() if key != "step"}
    return ORACLES[step["step"]](rows, **arguments)


def facts(rows: Rows) -> Row:
    """What the step table must say of these rows."""
    times = [row["timestamp"] for row in rows if row["timestamp"] is not None]
    events = Counter(row["user_id"] for row in rows).values()
    return {
        "rows": len(rows),
        "users": len(events),
        "items": len({row["item_id"] for row in rows}),
        "first_timestamp": min(times, default=None),
        "last_timestamp": max(times, default=None),
        "events_min": min(events),
        "events_mean": pytest.approx(mean(events)),
        "events_median": median(events),
        "events_max": max(events),
    }


# Tests -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def duckdb_engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return connect({"memory_limit": "1GB", "threads": 1, "spill_folder": str(tmp_path_factory.mktemp("spill"))})


def raw(con: Any, rows: Rows) -> RawTables:
    return RawTables(con.create_table(f"log_{id(rows)}", pa.Table.from_pylist(rows, schema=SCHEMA), overwrite=True))


def sampled(con: Any, rows: Rows, steps: list[dict[str, Any]]) -> tuple[Rows, Rows]:
    done = ingest(raw(con, rows), steps)
    return done.interactions.to_pyarrow().to_pylist(), done.steps.to_pylist()


def check(con: Any, rows: Rows, steps: list[dict[str, Any]]) -> None:
    expected, tables = rows, [facts(rows)] * 2
    for step in steps:
        expected = oracle(expected, step)
        if not expected:
            with pytest.raises(ValueError, match=f"{step['step']} .* leaves nothing of {tables[-1]['rows']:,} rows"):
                sampled(con, rows, steps)
            return
        tables.append(facts(expected))
    got, step_table = sampled(con, rows, steps)
    assert [row["order"] for row in got] == sorted(row["order"] for row in expected)
    whole = {row["order"]: row for row in rows}
    assert got == [whole[row["order"]] for row in got]  # values and columns are untouched
    assert [{key: row[key] for key in tables[0]} for row in step_table] == tables
    assert [row["name"] for row in step_table] == ["raw", "bad_rows", *(step["step"] for step in steps)]


@pytest.mark.parametrize("step", STEPS, ids=step_id)
def test_a_step_equals_plain_python(duckdb_engine: Any, step: dict[str, Any]) -> None:
    for seed, untimed in ((1, 0.0), (2, 0.3)):
        assert oracle(random_log(seed, untimed=untimed), step)
        check(duckdb_engine, random_log(seed, untimed=untimed), [step])


@pytest.mark.parametrize("seed", range(25))
def test_steps_compose_in_any_order(duckdb_engine: Any, seed: int) -> None:
    steps = random.Random(seed).choices(STEPS, k=4)
    check(duckdb_engine, random_log(seed, untimed=random.Random(seed).choice([0, 0.1, 1])), steps)


@pytest.mark.parametrize("keep", ["first", "last"])
@pytest.mark.parametrize("untimed", [0.0, 0.5, 1.0])
def test_long_histories_are_cut_at_the_right_event(duckdb_engine: Any, keep: str, untimed: float) -> None:
    rows = random_log(7, rows=3000, untimed=untimed)  # histories far longer than the parts they are counted in
    for n in (1, 50, 64, 99):
        check(duckdb_engine, rows, [{"step": "cap_per_user", "n": n, "keep": keep}])


def test_hashed_users_have_complete_histories_and_grow_with_the_share(duckdb_engine: Any) -> None:
    rows = random_log(3, rows=1000)
    events = Counter(row["user_id"] for row in rows)
    smaller: set[str] = set()
    for share in (0.2, 0.5, 0.9):
        got, _ = sampled(duckdb_engine, rows, [{"step": "hash_users", "share": share, "salt": "x"}])
        counted = Counter(row["user_id"] for row in got)
        assert all(counted[user] == events[user] for user in counted)
        assert smaller <= set(counted)
        smaller = set(counted)


def test_users_are_hashed_as_documented(duckdb_engine: Any) -> None:
    first_8 = int(hashlib.md5(b"ann2024").hexdigest()[:8], 16)
    row = {"user_id": "ann", "item_id": "i", "timestamp": 1, "rating": None, "order": 0}
    inside = {"step": "hash_users", "share": (first_8 + 1) / 2**32, "salt": "2024"}
    assert [r["user_id"] for r in sampled(duckdb_engine, [row], [inside])[0]] == ["ann"]
    between = inside | {"share": (first_8 + 0.5) / 2**32}  # rounded to neither side
    assert [r["user_id"] for r in sampled(duckdb_engine, [row], [between])[0]] == ["ann"]
    outside = inside | {"share": first_8 / 2**32}
    with pytest.raises(ValueError, match="leaves nothing of 1 rows"):
        sampled(duckdb_engine, [row], [outside])


def test_time_window_takes_dates_as_utc(duckdb_engine: Any) -> None:
    rows = [
        {"user_id": "u", "item_id": "i", "timestamp": t, "rating": None, "order": n}
        for n, t in enumerate([1_546_300_799, 1_546_300_800, 1_546_343_999, 1_546_344_000])
    ]
    window = {"step": "time_window", "start": "2019-01-01", "end": "2019-01-01 12:00"}
    assert [row["order"] for row in sampled(duckdb_engine, rows, [window])[0]] == [1, 2]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"step": "k_cores", "users": 5}, r"unknown step 'k_cores' \(did you mean 'k_core'\?\).*hash_users"),
        ({"step": "k_core", "user": 5}, r"unknown argument of k_core 'user' \(did you mean 'users'\?\)"),
        ({"users": 5}, "must be a mapping with a name"),
        ({"step": "min_events"}, "min_events: users: Field required"),
        ({"step": "min_events", "users": 0}, "min_events: users: .*greater than 0, not 0"),
        ({"step": "min_events", "users": "many"}, "users: .*integer.*'many'"),
        ({"step": "hash_users", "share": 5}, "share: .*less than or equal to 1, not 5"),
        ({"step": "hash_users", "share": 0}, "share: .*greater than 0"),
        ({"step": "cap_per_user", "n": 3, "keep": "newest"}, "keep: .*'last', 'first' or 'random'"),
        ({"step": "random_rows", "share": 0.5}, "random_rows: seed: Field required"),
        ({"step": "systematic", "every": 2, "offset": 2}, "offset 2 must be smaller than every 2"),
        ({"step": "time_window", "start": "yesterday"}, "time_window: start"),
        ({"step": "time_window", "start": 9, "end": 9}, "start 9 is not before end 9"),
        ({"step": "time_window"}, "give start, end or both"),
        ({"step": "k_core"}, "give users, items or both"),
        ({"step": "where", "condition": "rating + 4"}, "where: condition is 'rating .* 4': .*position 8"),
        ({"step": "where", "condition": "stars > 4"}, "no column 'stars', only user_id, .*extra_columns"),
        ({"step": "weights", "events": {"view": 1}}, r"no weight for the event types 'cart' \(\d+ rows\), \"it's\""),
        ({"step": "weights", "events": {"view": -1}}, "events.view: .*greater than or equal to 0, not -1"),
        ({"step": "weights", "events": {}}, "events: .*at least 1 item"),
        ({"step": "sessions", "gap": "soon"}, "gap is 'soon': give seconds or a number with a unit, as in 30m"),
        ({"step": "sessions", "gap": "0m"}, "gap is '0m'"),
        ({"step": "sessions", "gap": "30m"}, "sessions: 2 events have no timestamp"),
        ({"step": "duplicates", "by": ["item"]}, "choose from the columns"),
        ({"step": "stratified", "share": 0.5, "by": "country", "seed": 1}, "by is one of .*user_activity"),
        ({"step": "stratified", "share": 0.5, "by": "rating", "seed": 1, "of": "users"}, "goes with user_activity"),
    ],
)
def test_a_wrong_step_is_refused(duckdb_engine: Any, step: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampled(duckdb_engine, random_log(1, rows=20), [step])


def test_wrong_arguments_are_refused_before_any_step_runs() -> None:
    with pytest.raises(ValueError, match="unknown step 'sample'"):
        sampling.check([{"step": "min_events", "users": 2}, {"step": "sample"}])


def test_min_rating_needs_ratings(duckdb_engine: Any) -> None:
    table = pa.Table.from_pylist(random_log(1, rows=20), schema=SCHEMA).drop_columns(["rating"])
    log = RawTables(duckdb_engine.create_table("unrated", table))
    with pytest.raises(ValueError, match="no column rating"):
        ingest(log, [{"step": "min_rating", "at_least": 3}])


def test_duplicates_across_event_types_are_warned_of(duckdb_engine: Any, caplog: pytest.LogCaptureFixture) -> None:
    rows = random_log(1, rows=20)
    sampled(duckdb_engine, rows, [{"step": "duplicates", "by": ["user_id", "item_id", "event"]}])
    assert "add event to `by`" not in caplog.text
    sampled(duckdb_engine, rows, [{"step": "duplicates"}])
    assert "add event to `by`" in caplog.text


def test_repeated_orders_are_refused(duckdb_engine: Any) -> None:
    row = {"user_id": "u", "item_id": "i", "timestamp": 5, "rating": None, "order": 1}
    with pytest.raises(ValueError, match="`order` of its own"):
        sampled(duckdb_engine, [row, row, row], [{"step": "last", "k": 2}])


@pytest.mark.parametrize("weighted", [False, True])
def test_event_types_multiply_weights(duckdb_engine: Any, weighted: bool) -> None:
    rows = random_log(5, rows=50)
    columns: Row = {"weight": pa.array([None if n % 5 == 0 else n / 2 for n in range(50)], pa.float64())}
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    if weighted:
        table = table.append_column("weight", columns["weight"])
    log = RawTables(duckdb_engine.create_table(f"weights_{weighted}", table))
    step = {"step": "weights", "events": {"view": 0.25, "cart": 3, "absent": 1}, "other": 0}
    got = ingest(log, [step]).interactions.to_pyarrow().to_pylist()
    factors = {"view": 0.25, "cart": 3.0, "it's": 0.0}
    expected = [
        factors[row["event"]] * (1.0 if not weighted or weight is None else weight)
        for row, weight in zip(rows, columns["weight"].to_pylist(), strict=True)
    ]
    assert [row["weight"] for row in got] == expected


@pytest.mark.parametrize(("gap", "seconds"), [("30m", 1800), ("2h", 7200), (600, 600), ("1d", 86_400)])
def test_users_are_cut_into_sessions_at_long_pauses(duckdb_engine: Any, gap: Any, seconds: int) -> None:
    rows = random_log(6, untimed=0.0)
    expected = {}
    for user in groups(rows, "user_id"):
        number, before = 0, -(10**9)
        for row in sorted(user, key=when):
            number += row["timestamp"] - before > seconds or not number
            before = row["timestamp"]
            expected[row["order"]] = f"{row['user_id']}#{number}"
    users = pa.table({"user_id": sorted({row["user_id"] for row in rows}), "age": range(len(groups(rows, "user_id")))})
    log = RawTables(raw(duckdb_engine, rows).interactions, users=duckdb_engine.create_table(f"users_{seconds}", users))
    done = ingest(log, [{"step": "sessions", "gap": gap}])
    got = done.interactions.to_pyarrow()
    assert got.column_names == SCHEMA.names
    assert dict(zip(got["order"].to_pylist(), got["user_id"].to_pylist(), strict=True)) == expected
    ages = dict(zip(*users.to_pydict().values(), strict=True))
    profiles = done.users.to_pyarrow().to_pylist()
    assert [row["user_id"] for row in profiles] == sorted(set(expected.values()))
    assert all(row["age"] == ages[row["user_id"].rpartition("#")[0]] for row in profiles)


# Spark ---------------------------------------------------------------------------------------------------------------

CHAINS = [
    [
        {"step": "duplicates"},
        {"step": "k_core", "users": 2, "items": 2},
        {"step": "hash_users", "share": 0.8, "salt": "é"},
        {"step": "last", "k": 9},
        {"step": "stratified", "share": 0.8, "by": "user_activity", "seed": 5, "of": "users"},
    ],
    [
        {"step": "time_window", "start": 1_500_000_001},
        {"step": "min_events", "users": 2},
        {"step": "cap_per_user", "n": 20, "keep": "random", "seed": 3},
        {"step": "random_rows", "share": 0.9, "seed": 4},
        {"step": "stratified", "share": 0.7, "by": "rating", "seed": 2},
        {"step": "systematic", "every": 2},
        {"step": "min_rating", "at_least": 2},
    ],
    [
        {"step": "time_window", "start": 1_500_000_001},
        {"step": "where", "condition": "rating > 1 or event in ['cart', 'x']"},
        {"step": "weights", "events": {"view": 0.5}, "other": 2},
        {"step": "sessions", "gap": "20m"},
        {"step": "last", "k": 3},
    ],
]


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    pytest.importorskip("pyspark", reason="pyspark is not installed: pip install 'recpipe[spark]'")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java on the PATH")
    # fast on tiny tables
    settings = dict.fromkeys(("spark.sql.codegen.wholeStage", "spark.sql.adaptive.enabled"), "false")
    settings |= {"spark.sql.shuffle.partitions": "1", "spark.default.parallelism": "1"}
    engine = {"name": "spark", "master": "local[2]", "memory_limit": "1GB", "settings": settings}
    yield engine | {"spill_folder": str(tmp_path_factory.mktemp("spark"))}
    from pyspark.sql import SparkSession

    if session := SparkSession.getActiveSession():
        session.stop()


@pytest.mark.slow
@pytest.mark.parametrize("steps", CHAINS, ids=["users", "rows", "events"])
def test_spark_writes_the_same_parquet(
    duckdb_engine: Any, spark: dict[str, Any], tmp_path: Path, steps: list[dict[str, Any]]
) -> None:
    rows = random_log(11, rows=400)
    rows[5]["user_id"], rows[9]["timestamp"], rows[12]["item_id"] = " ", -4, "null\0byte"
    here, there = (ingest(raw(duckdb_engine, rows), steps), ingest(raw(duckdb_engine, rows), steps, engine=spark))
    for name in ("interactions", "quarantine", "items", "users"):
        for engine, done in (("duckdb", here), ("spark", there)):
            write_parquet(getattr(done, name), tmp_path / f"{name}-{engine}.parquet")
        one, other = (pq.read_table(tmp_path / f"{name}-{engine}.parquet") for engine in ("duckdb", "spark"))
        assert one.schema.types == other.schema.types
        assert one.to_pydict() == other.to_pydict()  # the same rows in the same order
    assert pq.read_table(tmp_path / "quarantine-spark.parquet").num_rows == 3
    assert here.steps.equals(there.steps)
    assert sorted(p.name for p in tmp_path.iterdir() if "part" in p.name) == []
