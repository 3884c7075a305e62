"""Describe a raw log and propose its data-set file: delimiter, encoding, roles of columns, time format, cleaning steps.

recpipe dataset data/01_raw/my_shop/orders.csv
recpipe dataset orders.csv --name my_shop --items products.csv --user-id client --item-id article

Writes conf/local/parameters/datasets/<name>.yml. Roles come from the names of columns and their values; options name a
column where the guess is wrong. Only the first rows are read, 200,000 by default. Files: CSV, TSV, JSON lines, an array
of JSON, Parquet; text also with gzip, bz2 or zstd.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from recpipe.config import ConfigError
from recpipe.config.files import read_yaml
from recpipe.data.column_roles import LOG_ROLES, ItemTable, describe_items, guess_roles, time_columns
from recpipe.data.dataset_file import dataset_file
from recpipe.data.sample_rows import Sample, is_number, read_sample
from recpipe.data.time_formats import TimeFormat, detect_time_format

ROWS = 200_000
MIN_SHARE_OF_TIMES = 0.9  # values of a time column that have one format
MIN_SHARE_OF_NUMBERS = 0.9  # values of a rating or a weight
CORES = (5, 3, 2)  # k of the step k_core, largest first
MIN_CORE_SHARE = 0.5  # of the events, which the step k_core keeps
MIN_USERS = 20
GOOD = 0.8  # of the highest rating, from which a rating is good: 4 of 5
NUMBERS = ("rating", "weight")  # roles whose values are numbers


class GoodRatings(NamedTuple):
    """The lowest good rating, as in the file, and the share of ratings from it on."""

    at_least: str
    share: float


@dataclass(frozen=True)
class Description:
    """A log as read: columns by role, time format, counts, and the steps that fit them.

    unusable: rows without a user or an item, and those without a time, by reason. duplicates: usable rows with user,
    item and time of an earlier one; 0 for a log without times. good: of a log with ratings, None where all are equal.
    core, core_share: k of the step k_core, None without one, and the share of events that it keeps.
    """

    sample: Sample
    columns: dict[str, str]
    time: TimeFormat | None
    counts: dict[str, int]
    repeats: float
    core: int | None
    core_share: float
    unusable: Mapping[str, int] = field(default_factory=dict)
    duplicates: int = 0
    good: GoodRatings | None = None
    notes: Sequence[str] = ()  # for the reader: columns that are not used, and why

    @property
    def user_column(self) -> str:
        """The column whose values name sequences."""
        return self.columns.get("user_id") or self.columns["session_id"]


def main(arguments: list[str] | None = None) -> int:
    """Print the description and write the file; return 1 after an error, which is one line."""
    options = _parser().parse_args(arguments)
    try:
        name = _dataset_name(options.file) if options.name is None else options.name
        _check_name(name)
        requested = {role: column for role in LOG_ROLES if (column := getattr(options, role))}
        log = describe(read_sample(options.file, rows=options.rows, delimiter=options.delimiter), requested)
        items = _items(options, log)
        text = dataset_file(name, log, items, raw=Path("data/01_raw") / name)
        target = options.conf / "local" / "parameters" / "datasets" / f"{name}.yml"
        if not options.print:
            _check_target(target, options.conf, force=options.force)
        print("\n".join(report(log, items)))
        if options.print:
            print(f"\n{text}", end="")
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
            print(f"\nwrote {target}: look at it, then\n{commands(name)}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def commands(name: str) -> str:
    """Return the commands that train on a data set, the fast one first."""
    first = f"  kedro run --pipelines=ingest,train,evaluate,report --params dataset={name},model=popular+item_knn"
    return f"{first}\nand for sasrec, a neural network, which takes longer\n  kedro run --params dataset={name}"


def _items(options: argparse.Namespace, log: Description) -> ItemTable | None:
    """Describe the items file, or the log where it has titles; None without either."""
    if options.items is not None:
        return describe_items(read_sample(options.items, rows=options.rows, delimiter=None), log.sample, log.columns)
    has_titles = "title" in guess_roles(log.sample, log.columns, (*log.columns, "title"))
    return describe_items(log.sample, log.sample, log.columns) if has_titles else None


def describe(sample: Sample, requested: Mapping[str, str]) -> Description:
    """Find roles of columns, time format and counts. Raises ConfigError where no column names users or items."""
    from recpipe.data.files.times import readable_times  # imports duckdb and pyarrow, which `--help` does not need

    columns = _log_columns(sample, requested)
    notes = _drop_words(columns, sample, requested)
    if "timestamp" not in columns:
        columns, note = _with_time(columns, sample)
        notes += note
    time = _time(columns, sample) if "timestamp" in columns else None
    user = columns.get("user_id") or columns["session_id"]
    users, items = sample.values(user), sample.values(columns["item_id"])
    times = sample.values(columns["timestamp"]) if time else [""] * sample.rows
    has_time = readable_times(times, time.name) if time else [True] * sample.rows
    named = [bool(user_id and item_id) for user_id, item_id in zip(users, items, strict=True)]
    usable = [row for row in range(sample.rows) if named[row] and has_time[row]]
    if not usable:
        time_words = f", and a time in {columns['timestamp']!r}" if time else ""
        raise ConfigError(
            f"no row of {sample.path} has a value in both {user!r} and {columns['item_id']!r}{time_words}"
        )
    untimed = [times[row] for row in range(sample.rows) if named[row] and not has_time[row]]
    unusable = {"no user or no item": named.count(False)}
    if time:
        example = next(filter(str.strip, untimed), None)
        reason = "no time" if example is None else f"no time in the format {time.name}, such as {example[:50]!r}"
        unusable[reason] = len(untimed)
    pairs = [(users[row], items[row]) for row in usable]
    duplicates = len(usable) - len({(users[row], items[row], times[row]) for row in usable}) if time else 0
    counts = {"events": len(pairs), "users": len({u for u, _ in pairs}), "items": len({i for _, i in pairs})}
    repeats = 1 - len(set(pairs)) / len(pairs)
    core, core_share = choose_core(pairs)
    ratings = sample.values(columns["rating"]) if "rating" in columns else []
    good = good_ratings([ratings[row] for row in usable]) if ratings else None
    return Description(sample, columns, time, counts, repeats, core, core_share, unusable, duplicates, good, notes)


def _log_columns(sample: Sample, requested: Mapping[str, str]) -> dict[str, str]:
    """Return columns by role. Raises ConfigError where none names users or items, and for a wrong request."""
    for role, column in requested.items():
        if column not in sample.columns:
            raise ConfigError(
                f"{sample.path} has no column {column!r} for --{role.replace('_', '-')}; its columns: "
                f"{', '.join(sample.columns)}"
            )
    if repeated := [column for column, number in Counter(requested.values()).items() if number > 1]:
        raise ConfigError(f"the column {repeated[0]!r} is named for two roles: a column has one")
    columns = guess_roles(sample, requested, LOG_ROLES)
    needed = {"user_id": ("a user id", "--user-id COLUMN"), "item_id": ("an item id", "--item-id COLUMN")}
    if "session_id" in columns:
        del needed["user_id"]
    if missing := [texts for role, texts in needed.items() if role not in columns]:
        raise ConfigError(
            f"no column of {sample.path} looks like {' or '.join(words for words, _ in missing)}: name it with "
            f"{' '.join(option for _, option in missing)}; its columns: {', '.join(sample.columns)}"
        )
    return columns


def _with_time(columns: dict[str, str], sample: Sample) -> tuple[dict[str, str], list[str]]:
    """Add the one column whose values are times, if there is one; return the columns by role and what to say."""
    candidates = time_columns(sample, columns)
    if not candidates:
        return columns, []
    if len(candidates) > 1:
        return columns, [f"several columns hold times: {', '.join(candidates)}"]
    columns = columns | {"timestamp": candidates[0]}
    note = (
        f"the column {candidates[0]!r} is the timestamp by its values; if that is wrong, --timestamp names another one"
    )
    return {role: columns[role] for role in LOG_ROLES if role in columns}, [note]


def _time(columns: Mapping[str, str], sample: Sample) -> TimeFormat:
    """Return the format of the timestamp. Raises ConfigError where no known one fits."""
    time = detect_time_format(sample.values(columns["timestamp"]))
    if time is None or time.share < MIN_SHARE_OF_TIMES:
        example = next(iter(sample.values(columns["timestamp"])), "")
        raise ConfigError(
            f"no known time format fits the column {columns['timestamp']!r}, whose first value is {example!r}: "
            "name another one with --timestamp COLUMN, or write the file by hand: `timestamp` in "
            "conf/base/parameters/datasets/my_log.yml takes a format such as '%d.%m.%Y %H:%M'"
        )
    return time


def good_ratings(values: Sequence[str]) -> GoodRatings | None:
    """Return the lowest rating from four fifths of the highest one on; None where no rating is lower."""
    ratings = [float(value) for value in values if is_number(value)]
    ratings = [rating for rating in ratings if math.isfinite(rating)]
    limit = GOOD * max(ratings, default=0.0)
    at_least = min((rating for rating in ratings if rating >= limit), default=None)
    if at_least is None or at_least == min(ratings):
        return None
    return GoodRatings(f"{at_least:g}", sum(rating >= at_least for rating in ratings) / len(ratings))


def _drop_words(columns: dict[str, str], sample: Sample, requested: Mapping[str, str]) -> list[str]:
    """Remove a rating that is no number, since ingest would refuse its rows; return why, in words.

    Raises ConfigError for one that was requested.
    """
    notes = []
    for role in NUMBERS:
        values = [value for value in sample.values(columns[role]) if value.strip()] if role in columns else []
        words = [value for value in values if not is_number(value)]
        if len(words) > (1 - MIN_SHARE_OF_NUMBERS) * len(values):
            fault = f"{columns[role]!r} is no {role}: {words[0][:50]!r} is no number, as 0.5 is"
            if role in requested:
                raise ConfigError(f"{fault}; leave out --{role}, or change the file")
            notes.append(f"the column {fault}; it is not used")
            del columns[role]
    return notes


def choose_core(pairs: Sequence[tuple[str, str]]) -> tuple[int | None, float]:
    """Return the largest k whose k-core keeps half of the events, with the share it keeps; None without one."""
    for k in CORES:
        events = list(pairs)
        while True:
            users, items = Counter(user for user, _ in events), Counter(item for _, item in events)
            core = [(user, item) for user, item in events if users[user] >= k and items[item] >= k]
            if len(core) == len(events):
                break
            events = core
        if len(events) >= MIN_CORE_SHARE * len(pairs) and len(users) >= MIN_USERS:
            return k, len(events) / len(pairs)
    return None, 1.0


def report(log: Description, items: ItemTable | None = None) -> list[str]:
    """Return lines for the terminal: the files, their columns with their roles, counts."""
    lines = _columns(log.sample, {column: role for role, column in log.columns.items()})
    if items and items.sample is not log.sample:
        lines += ["", *_columns(items.sample, items.roles())]
    counts = ", ".join(f"{number:,} {name}" for name, number in log.counts.items())
    lines += ["", counts if log.sample.complete else f"in these {log.sample.rows:,} rows: {counts}"]
    lines += [f"{number:,} rows have {reason}" for reason, number in log.unusable.items() if number]
    if log.duplicates:
        lines.append(
            f"{log.duplicates:,} rows have user, item and time of an earlier row: the step duplicates removes them"
        )
    if log.time:
        lines.append(f"times: {log.time.name}, {log.time.first} to {log.time.last}")
        if log.time.ambiguous:
            lines.append("times: day and month could be exchanged; check `timestamp` in the file")
    else:
        lines.append("no time column: the order of the rows decides; name one with --timestamp COLUMN")
    if log.good:
        lines.append(
            f"every rating counts as an event; to keep the good ones, {log.good.share:.0%}, use the step min_rating "
            "in the file"
        )
    lines.append(f"{log.repeats:.0%} of the events repeat an item of the same user")
    lines.append(
        f"the {log.core}-core keeps {log.core_share:.0%} of the events"
        if log.core
        else "no k-core: it would keep too little"
    )
    return [*lines, *log.notes]


def _columns(sample: Sample, roles: Mapping[str, str]) -> list[str]:
    """Return lines on a file: its layout, then a line per column with role, number of values and an example."""
    extent = "all rows" if sample.complete else f"the first {sample.rows:,} rows"
    lines = [f"{sample.path}: {', '.join(sample.layout)}, {extent} read", ""]
    width = max(len(column) for column in ("column", *sample.columns))
    role_width = max(10, *map(len, roles.values()))
    lines.append(f"{'column':{width}}  {'role':{role_width}}  {'different':>9}  first value")
    for column in sample.columns:
        values = sample.values(column)
        example = next(filter(None, values), "")
        role = roles.get(column, "-")
        lines.append(f"{column:{width}}  {role:{role_width}}  {len({*values} - {''}):9,}  {example[:50]}")
    return lines


def _dataset_name(path: Path) -> str:
    """Return the folder's name for a file in data/01_raw/<name>/, the file's name otherwise, in usual characters."""
    folder = path.resolve().parent
    name = folder.name if folder.parent.name == "01_raw" else path.name.partition(".")[0]
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _check_name(name: str) -> None:
    """Raise ConfigError for a name that is no file name, or that the command line reads as a number or a constant."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ConfigError(f"{name!r} cannot name a data set: give it letters, digits, _, - and . with --name NAME")
    if read_yaml(name) != name:
        raise ConfigError(f"`--params dataset={name}` would be read as {read_yaml(name)!r}: give it --name NAME")


def _check_target(target: Path, conf: Path, *, force: bool) -> None:
    """Raise ConfigError outside of a project, for a data set of base, and for a file that must not be replaced."""
    if not conf.is_dir():
        raise ConfigError(f"there is no folder {conf}: work in a project folder; `recpipe new` creates one")
    if (base := conf / "base" / "parameters" / "datasets" / target.name).exists():
        raise ConfigError(f"{base} has this data set, and its keys would be mixed with new ones: give another --name")
    if target.exists() and not force:
        raise ConfigError(f"{target} exists already: --force writes it again, --print shows what it would be")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "recpipe dataset", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="raw log")
    parser.add_argument("--name", help="of the data set; default: the folder of the file in data/01_raw, or the file")
    parser.add_argument("--items", type=Path, help="file with a row per item: id, title, more")
    for role in LOG_ROLES:
        parser.add_argument(f"--{role.replace('_', '-')}", metavar="COLUMN", help=f"column with the {role}")
    parser.add_argument("--delimiter", help="of a text file; default: guessed")
    parser.add_argument("--rows", type=int, default=ROWS, help="number of rows to read (default: %(default)s)")
    parser.add_argument("--conf", type=Path, default=Path("conf"), help="folder with base/ and local/")
    parser.add_argument("--print", action="store_true", help="show the file, write nothing")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
