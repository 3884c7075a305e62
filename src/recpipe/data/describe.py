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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recpipe.config import ConfigError
from recpipe.config.files import read_yaml
from recpipe.data.sample_rows import Sample, is_number, read_sample
from recpipe.data.time_formats import TimeFormat, detect_time_format

ROWS = 200_000
MIN_SHARE_OF_TIMES = 0.9  # values of a time column that have one format
MIN_SHARE_OF_NUMBERS = 0.9  # values of a rating or a weight
CORES = (5, 3, 2)  # k of the step k_core, largest first
MIN_CORE_SHARE = 0.5  # of the events, which the step k_core keeps
MIN_USERS = 20
MIN_SHARED_IDS = 0.5  # of the log's ids in a column of the items, which is then their id whatever its name
REPEATS = 0.1  # share of events with an item that their user had before, from which lists may repeat items
NAMES = {  # usual names of columns by role, the most usual first, in letters only
    "user_id": "user userid customer customerid visitor visitorid client clientid member memberid uid reviewerid "
    "account accountid buyer person personid profileid shopper subscriber listener listenerid viewer viewerid reader "
    "readerid player playerid guest guestid student studentid",
    "session_id": "session sessionid visit visitid basketid",
    "item_id": "item itemid product productid sku article articleid asin parentasin movie movieid film track trackid "
    "song songid book bookid isbn video videoid game gameid show showid podcast podcastid episode episodeid recipe "
    "recipeid course courseid hotel hotelid venue venueid stockcode aid contentid newsid businessid",
    "timestamp": "timestamp time date datetime ts createdat happenedat eventtime eventdate unixreviewtime orderdate "
    "invoicedate purchasedate boughtat bought ratedat watchedat playedat reviewtime day",
    "rating": "rating ratings stars overall score",
    "weight": "quantity qty count plays playcount",
    "event": "event eventtype action actiontype behavior behaviour interaction",
    "title": "title name productname itemname movietitle description itemtitle label",
}
NUMBERS = ("rating", "weight")  # roles whose values are numbers
LOG_ROLES = ("user_id", "session_id", "item_id", "timestamp", "rating", "weight", "event")
TEXT_NAMES = ("brand", "category", "categories", "genres", "description", "author", "artist", "tags", "summary")


@dataclass(frozen=True)
class Description:
    """A log as read: columns by role, time format, counts, and the steps that fit them.

    core, core_share: k of the step k_core, None without one, and the share of events that it keeps.
    """

    sample: Sample
    columns: dict[str, str]
    time: TimeFormat | None
    counts: dict[str, int]
    repeats: float
    core: int | None
    core_share: float
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
        items = None if options.items is None else read_sample(options.items, rows=options.rows, delimiter=None)
        text = dataset_file(name, log, items, raw=Path("data/01_raw") / name)
        target = options.conf / "local" / "parameters" / "datasets" / f"{name}.yml"
        if not options.print:
            _check_target(target, options.conf, force=options.force)
        print("\n".join(report(log)))
        if options.print:
            print(f"\n{text}", end="")
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
            print(f"\nwrote {target}: look at it, then\n  kedro run --params dataset={name}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def describe(sample: Sample, requested: Mapping[str, str]) -> Description:
    """Find roles of columns, time format and counts. Raises ConfigError where no column names users or items."""
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
    notes = _drop_words(columns, sample, requested)
    time = None
    if "timestamp" in columns:
        time = detect_time_format(sample.values(columns["timestamp"]))
        if time is None or time.share < MIN_SHARE_OF_TIMES:
            example = next(iter(sample.values(columns["timestamp"])), "")
            raise ConfigError(
                f"no known time format fits the column {columns['timestamp']!r}, whose first value is {example!r}: "
                "name another one with --timestamp COLUMN, or write the file by hand: `timestamp` in "
                "conf/base/parameters/datasets/my_log.yml takes a format such as '%d.%m.%Y %H:%M'"
            )
    user = columns.get("user_id") or columns["session_id"]
    pairs = [pair for pair in zip(sample.values(user), sample.values(columns["item_id"]), strict=True) if all(pair)]
    if not pairs:
        raise ConfigError(f"no row of {sample.path} has a value in both {user!r} and {columns['item_id']!r}")
    counts = {"events": len(pairs), "users": len({u for u, _ in pairs}), "items": len({i for _, i in pairs})}
    repeats = 1 - len(set(pairs)) / max(len(pairs), 1)
    core, core_share = choose_core(pairs)
    return Description(sample, columns, time, counts, repeats, core, core_share, notes)


def guess_roles(sample: Sample, requested: Mapping[str, str], roles: Sequence[str]) -> dict[str, str]:
    """Return the column of every role that one fits: the requested one, or the first whose name is usual for it.

    A weight changes what models learn: it has a column only if one is requested.
    """
    columns = dict(requested)
    for role in roles:
        free = [column for column in sample.columns if column not in columns.values()]
        by_name = {re.sub(r"[^a-z]", "", column.lower()): column for column in reversed(free)}
        if role not in (*columns, "weight") and (
            name := next((name for name in NAMES[role].split() if name in by_name), None)
        ):
            columns[role] = by_name[name]
    if "user_id" in columns and "session_id" in columns and "session_id" not in requested:
        del columns["session_id"]  # sequences of users, unless sessions are requested
    return {role: columns[role] for role in roles if role in columns}


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


def report(log: Description) -> list[str]:
    """Return lines for the terminal: the file, its columns with their roles, counts."""
    sample, roles = log.sample, {column: role for role, column in log.columns.items()}
    extent = "all rows" if sample.complete else f"the first {sample.rows:,} rows"
    lines = [f"{sample.path}: {', '.join(sample.layout)}, {extent} read", ""]
    width = max(len(column) for column in ("column", *sample.columns))
    lines.append(f"{'column':{width}}  {'role':10}  {'different':>9}  first value")
    for column in sample.columns:
        values = sample.values(column)
        example = next(filter(None, values), "")
        lines.append(f"{column:{width}}  {roles.get(column, '-'):10}  {len(set(values)):9,}  {example[:50]}")
    lines += ["", ", ".join(f"{number:,} {name}" for name, number in log.counts.items())]
    if missing := sample.rows - log.counts["events"]:
        lines.append(f"{missing:,} rows have no user or no item")
    if log.time:
        lines.append(f"times: {log.time.name}, {log.time.first} to {log.time.last}")
        if log.time.ambiguous:
            lines.append("times: day and month could be exchanged; check `timestamp` in the file")
    lines.append(f"{log.repeats:.0%} of the events repeat an item of the same user")
    lines.append(
        f"the {log.core}-core keeps {log.core_share:.0%} of the events"
        if log.core
        else "no k-core: it would keep too little"
    )
    return [*lines, *log.notes]


def dataset_file(name: str, log: Description, items: Sample | None, *, raw: Path) -> str:
    """Return the YAML text of a data set. raw: its folder of raw files, from which file names are relative."""
    columns = ", ".join(f"{role}: {_quoted(column)}" for role, column in log.columns.items())
    lines = [
        f"# Proposed by `recpipe dataset` from {_quoted(log.sample.path.name)}.",
        "# Every key is explained in conf/base/parameters/datasets/my_log.yml.",
        "datasets:",
        f"  {_quoted(name)}:",
        f"    title: {_quoted(name.replace('_', ' ').capitalize())}",
        "    source: files",
        "    profile: auto                 # tuned settings of the models, chosen by events and users",
        "    files:",
        f"      interactions: {_quoted(_relative(log.sample.path, raw))}",
    ]
    title = guess_roles(log.sample, log.columns, (*log.columns, "title")).get("title")
    product = items or (log.sample if title else None)
    if product:
        lines.append(f"      items: {_quoted(_relative(product.path, raw))}")
    lines += ["    options:", f"      columns: {{{columns}}}"]
    if hint := _weight_hint(log):
        lines.append(hint)
    if log.time:
        unclear = "   # or with day and month exchanged?" if log.time.ambiguous else ""
        lines.append(f"      timestamp: {_quoted(log.time.name)}{unclear}")
    lines += [f"      {key}: {_quoted(value)}" for key, value in log.sample.options.items()]
    content: list[str] = []
    if product:
        entries, content = _items_options(product, log)
        lines += ["      items:", *(f"        {line}" for line in entries)]
    lines.append("    bad_rows: quarantine          # unusable rows go to a table with their reasons")
    lines.append("    steps:")
    if log.time:
        lines.append("      - {step: duplicates, keep: first, by: [user_id, item_id, timestamp]}")
    if log.core:
        comment = f"   # keeps {log.core_share:.0%} of the events"
        lines.append(f"      - {{step: k_core, users: {log.core}, items: {log.core}}}{comment}")
    else:
        lines.append("      - {step: min_events, users: 2}   # too small for a k-core")
    lines += content
    exclude_seen = str(log.repeats < REPEATS).lower()
    reason = f"{log.repeats:.0%} of the events repeat an item of the user"
    lines.append(f"    protocol: {{exclude_seen: {exclude_seen}}}   # {reason}")
    if not log.time:
        lines.append("    baselines: [popular]          # popular_recent needs timestamps")
    return "\n".join(lines) + "\n"


def _weight_hint(log: Description) -> str | None:
    """Return a comment on a column that could weight events, None without one."""
    names = [column for column in log.sample.columns if column.lower() in NAMES["weight"].split()]
    if not names or "weight" in log.columns:
        return None
    return f"      # with `weight: {_quoted(names[0])}` in columns, events would count by it in training"


def _items_options(product: Sample, log: Description) -> tuple[list[str], list[str]]:
    """Return the lines of `options.items` and the block `content`. Raises ConfigError without a column of ids."""
    column = _id_column(product, log)
    if column is None:
        raise ConfigError(
            f"no column of {product.path} has the ids of the log's column {log.columns['item_id']!r}, such as "
            f"{next(filter(None, log.sample.values(log.columns['item_id'])))!r}; its columns: "
            f"{', '.join(product.columns)}"
        )
    roles = guess_roles(product, {"item_id": column}, ("item_id", "title"))
    lines = [f"columns: {{{', '.join(f'{role}: {_quoted(column)}' for role, column in roles.items())}}}"]
    lines += [f"{key}: {_quoted(value)}" for key, value in product.options.items()]
    texts = [column for column in product.columns if column.lower() in TEXT_NAMES and column != roles.get("title")]
    if product is log.sample:
        texts = []
    if "title" not in roles and not texts:
        return lines, []
    template = ". ".join(f"{{{column}}}" for column in (*(["title"] if "title" in roles else []), *texts))
    return lines, [
        "    content:                      # what text embeddings and semantic ids are made from",
        f"      text: {{template: {_quoted(template)}}}",
        "      modalities: [text]",
    ]


def _id_column(product: Sample, log: Description) -> str | None:
    """Return the column that has the log's item ids: by the log's name, a usual name, or its values; or None."""
    if log.columns["item_id"] in product.columns:
        return log.columns["item_id"]
    ids = set(log.sample.values(log.columns["item_id"])) - {""}
    shares = {column: len(ids.intersection(product.values(column))) / len(ids) for column in product.columns}
    usual = guess_roles(product, {}, ("item_id",)).get("item_id")
    if usual and shares[usual] >= MIN_SHARED_IDS:
        return usual
    column = max(product.columns, key=lambda name: shares[name])
    return column if shares[column] >= MIN_SHARED_IDS else usual


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


def _relative(path: Path, raw: Path) -> str:
    """Return the path from the raw folder for a file in it, the absolute path otherwise."""
    path, raw = path.resolve(), raw.resolve()
    return str(path.relative_to(raw) if path.is_relative_to(raw) else path)


def _quoted(value: Any) -> str:
    """Write a value for YAML on one line: plain where it is a word, otherwise in quotes with escapes.

    Raises ConfigError for bytes of a file name that are no UTF-8, which YAML cannot hold.
    """
    text = str(value)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ConfigError(f"the name {text!a} is no UTF-8: rename it")
    plain = re.fullmatch(r"[A-Za-z_][\w.-]*", text) and text.lower() not in ("yes", "no", "on", "off", "true", "false")
    if plain and text.lower() not in ("null", "y", "n"):
        return text
    quoted: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf)
    return quoted.rstrip("\n")


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
