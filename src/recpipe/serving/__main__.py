"""Recommendations for one user, from the newest bundle of a model or of a run.

recpipe recommend data/06_models/online_retail/tiger --find lantern
recpipe recommend data/06_models/online_retail/tiger --items 21754,85123A --top 5
recpipe recommend data/06_models/online_retail/tiger --user 12660
recpipe recommend data/06_models/online_retail/tiger --items 21754 --where 'price < 5 and train_events > 20'
recpipe recommend data/06_models/my_log/sasrec --items 7,9 --max-per-category brand=2 --diversity 0.3
recpipe recommend data/06_models/my_log/sasrec --new-items 0.2 --content data/06_models/my_log/text_knn
recpipe recommend data/06_models/my_log/sasrec --items 7 --times 1764000000 --rules '{seen: 30, exclude: ["8"]}'
recpipe recommend data/06_models/online_retail/sasrec/seed_42 --similar 21754
recpipe recommend data/06_models/my_log/sasrec/seed_42 --item 'Tea, green' --item ' 7'
recpipe recommend data/06_models/online_retail/tiger/seed_42 --items 21754 --search stochastic=true
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from recpipe.config import read_yaml
from recpipe.reporting.formatting import printable
from recpipe.training.bundle_folders import log_folder, newest_bundle

if TYPE_CHECKING:  # torch and pyarrow take seconds to import: only once the arguments are known to be right
    import pyarrow as pa

    from recpipe.data.user_histories import UserHistories
    from recpipe.serving.model import ServingBundle

TITLE_WIDTH = 60
TITLES_SHOWN = 50
EVENTS_SHOWN = 10
USERS_SUGGESTED = 3


def main(arguments: list[str] | None = None) -> int:
    """Print recommendations as a table or as JSON lines; exit status 2 for an invalid request."""
    options = _options(arguments)
    try:
        folder = newest_bundle(options.run)
        log = None if options.user is None else _open_log(folder, options.user)
        from recpipe.serving.model import load_bundle

        model = load_bundle(folder, items=options.current, content=options.content)
        if options.find is not None:
            return _print_hits(model, options.find)
        if options.similar is not None:
            (item,) = _trimmed([options.similar], model)
            _print_similar(model.similar(item, options.top), options.json)
            return 0
        history, times, profiles = [*(options.items or ()), *_trimmed(options.item, model)], options.times, None
        if log is not None:
            events = log.histories([options.user])[options.user]
            history, times = events.items, events.timestamps
            profiles = log.profiles([options.user], model.profile_columns)
        user = options.user or "user"
        table = model.recommend(
            {user: history},
            options.top,
            rules=_rules(options, model),
            timestamps=None if times is None else {user: times},
            now=options.now,
            profiles=profiles,
            search=dict(options.search),
        )
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    if options.json:
        for row in table.drop_columns(["user_id"]).to_pylist():
            print(json.dumps(row, ensure_ascii=False))
    else:
        _print_table(model, options.user, history, table)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the arguments; exit with status 2 for wrong ones, and for those that exclude each other."""
    parser = _parser()
    options = parser.parse_args(arguments)
    others = {"--items": options.items, "--item": options.item or None, "--times": options.times}
    others |= {"--find": options.find, "--similar": options.similar}
    if options.user is not None and (conflicting := [name for name, value in others.items() if value is not None]):
        parser.error(f"--user takes the history of the log: leave out {', '.join(conflicting)}, or --user")
    return options


def _open_log(bundle: Path, user: str) -> UserHistories:
    """Open the log of a bundle's data set. Raises ValueError where it is not on disk, and for an unknown user."""
    from recpipe.data.user_histories import UserHistories

    fix = "give the history with --items a,b,c instead of --user"
    folder = log_folder(bundle)
    if folder is None:
        raise ValueError(
            f"{bundle} is not in a data folder, data/06_models/<dataset>/<model>, so its log is unknown: {fix}"
        )
    try:
        log = UserHistories(folder)
    except ValueError as error:
        raise ValueError(f"{error}, or {fix}") from error
    if not log.histories([user]):
        similar = log.find(user, USERS_SUGGESTED)
        users = ", ".join(similar or log.find("", USERS_SUGGESTED))
        raise ValueError(
            f"user {user!r} has no events in the log of {folder.name}, which has {'similar ' * bool(similar)}ids such "
            f"as {users}; for a user who is not in the log, {fix}"
        )
    return log


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "recpipe recommend", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="data/06_models/<dataset>/<model>, one of its seeds, or a bundle")
    parser.add_argument("--user", metavar="ID", help="a user of the data set's log, with the history that it has there")
    parser.add_argument("--items", type=_ids, help="ids of the history, oldest first, as a,b,c; none: a new user")
    parser.add_argument(
        "--item", action="append", default=[], help="one id of the history as it is, also with commas; repeatable"
    )
    parser.add_argument("--times", type=_seconds, help="seconds since 1970 of the history's events, as 1,2,3")
    parser.add_argument("--now", type=int, help="seconds since 1970 at which the user asks; by default the clock's")
    parser.add_argument("--top", type=int, default=10, help="number of recommendations (10)")
    parser.add_argument(
        "--search",
        metavar="KEY=VALUE",
        type=_setting,
        action="append",
        default=[],
        help="setting of the search, such as beam=50, stochastic=true, temperatures=[1,1,2,2]; repeatable",
    )
    parser.add_argument("--find", metavar="TEXT", help="list items whose title or id contains it, instead")
    parser.add_argument("--similar", metavar="ITEM", help="list items nearest to it by the model's vectors, instead")
    parser.add_argument("--json", action="store_true", help="one JSON object per recommendation")
    _add_rules(parser.add_argument_group("rules", "which items a list may have, and how they are mixed"))
    return parser


def _add_rules(group: argparse._ArgumentGroup) -> None:
    """Add the options that become `Rules`."""
    group.add_argument(
        "--where", metavar="CONDITION", help="condition on item columns, as \"price < 5 and region in ['DE', 'AT']\""
    )
    group.add_argument("--candidates", type=_ids, help="ids that may be recommended, as a,b,c; all by default")
    group.add_argument("--candidate", action="append", help="one such id as it is, also with commas; repeatable")
    group.add_argument("--exclude", type=_ids, help="ids that must not be recommended, as a,b,c")
    group.add_argument("--exclude-item", action="append", help="one such id as it is, also with commas; repeatable")
    seen = group.add_mutually_exclusive_group()
    seen.add_argument("--seen", action="store_const", const="allow", help="include items of the history")
    seen.add_argument(
        "--unseen", dest="seen", action="store_const", const="exclude", help="exclude them; default: as in the protocol"
    )
    group.add_argument(
        "--max-per-category", metavar="COLUMN=N", type=_limit, help="most items of one value of the column, as brand=2"
    )
    group.add_argument(
        "--new-items", "--slots", dest="new_items", metavar="SHARE", type=float, help="share of places for new items"
    )
    group.add_argument("--new-where", metavar="CONDITION", help="which items are new; by default train_events = 0")
    group.add_argument("--content", type=Path, help="run of the model that ranks them, such as text_knn")
    group.add_argument("--diversity", metavar="DIAL", type=float, help="from 0, the order of the model, to 1")
    group.add_argument("--current", metavar="FILE", type=Path, help="Parquet file of item_id and current item columns")
    group.add_argument(
        "--rules", metavar="YAML", type=_mapping, default={}, help="rules as in the conf, as '{seen: 30}'"
    )


def _rules(options: argparse.Namespace, model: ServingBundle) -> dict[str, Any]:
    """Return the rules of ``--rules`` and of the other options, which win."""
    rules = dict(options.rules)
    for key, ids, items in (
        ("candidates", options.candidates, options.candidate),
        ("exclude", options.exclude, options.exclude_item),
    ):
        if ids is not None or items is not None:
            rules[key] = [*(ids or ()), *_trimmed(items or (), model)]
    for key in ("where", "seen", "diversity"):
        if (value := getattr(options, key)) is not None:
            rules[key] = value
    if options.max_per_category is not None:
        rules["category"], rules["max_per_category"] = options.max_per_category
    if options.new_items is not None:
        rules["new_items"] = {"share": options.new_items}
    if options.new_where is not None:
        if not isinstance(rules.get("new_items"), dict):
            raise ValueError("--new-where needs --new-items, the share of places for new items")
        rules["new_items"] = {**rules["new_items"], "where": options.new_where}
    return rules


def _print_hits(model: ServingBundle, text: str) -> int:
    hits = model.find_items(text, len(model.vocabulary)).to_pylist()
    for hit in hits[:TITLES_SHOWN]:
        print(f"{printable(hit['item_id']):>12}  {printable(hit['title'])}")
    if len(hits) > TITLES_SHOWN:
        print(f"and {len(hits) - TITLES_SHOWN} more")
    return 0 if hits else 1


def _print_similar(table: pa.Table, as_json: bool) -> None:
    if not as_json:
        print(f"{'item':>12}  {'title':{TITLE_WIDTH}} similarity")
    for row in table.to_pylist():
        item, title = printable(row["item_id"]), printable(row["title"] or "")[:TITLE_WIDTH]
        line = f"{item:>12}  {title:{TITLE_WIDTH}} {row['similarity']:.3f}"
        print(json.dumps(row, ensure_ascii=False) if as_json else line)


def _ids(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _seconds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole seconds, as 1764000000,1764086400") from error


def _limit(text: str) -> tuple[str, int]:
    column, _, number = text.rpartition("=")
    if not column or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no column with a number; write brand=2")
    return column, int(number)


def _mapping(text: str) -> dict[str, Any]:
    try:
        rules = read_yaml(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be read; write '{{seen: 30}}'") from error
    if not isinstance(rules, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no mapping; write '{{seen: 30}}'")
    return rules


def _setting(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} has no value; write beam=50")
    try:
        return key, read_yaml(value)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be read; lists are written [1,1,2,2]") from error


def _trimmed(ids: Iterable[str], model: ServingBundle) -> list[str]:
    """Remove the blanks around unknown ids, as ingest does."""
    vocabulary = {*model.vocabulary.ids.tolist()}
    return [item if item in vocabulary else item.strip() for item in ids]


def _print_table(model: ServingBundle, user: str | None, history: list[str], table: pa.Table) -> None:
    """Print the newest events of a history and a list: probabilities of a model that has some, else scores."""
    from recpipe.evaluation.recommendations import COLD_USERS

    print(f"{model.name} on {model.protocol.dataset}, protocol {model.protocol.id}")
    if user is not None:
        print(f"user {printable(user)}, {len(history):,} events in the log")
    _print_history(model, history)
    rows = table.to_pylist()
    codes = [name for name in table.column_names if name.endswith("_codes")]
    value = "probability" if any(row["probability"] is not None for row in rows) else "score"
    print(f"{'rank':>4} {'item':>12}  {'title':{TITLE_WIDTH}} {value:>11}  {'  '.join(codes)}".rstrip())
    for row in rows:
        number = "" if row[value] is None else _score(row[value]) if value == "score" else f"{row[value]:.2%}"
        ids = "  ".join("-" if row[name] is None else ".".join(map(str, row[name])) for name in codes)
        item, title = printable(row["item_id"]), printable(row["title"])[:TITLE_WIDTH]
        print(f"{row['rank']:>4} {item:>12}  {title:{TITLE_WIDTH}} {number:>11}  {ids}".rstrip())
    if not rows:
        print("No item is left by the rules and the history.")
    if COLD_USERS in table["source"].to_pylist():
        print("No known item in the history: these are recommendations for users without history.")


def _score(score: float) -> str:
    """Format a score with five significant digits, so that those of one size stand below each other."""
    return f"{score:#.5g}".removesuffix(".")


def _print_history(model: ServingBundle, history: list[str]) -> None:
    """Print the newest events, the newest last."""
    titles = dict(zip(model.vocabulary.ids.tolist(), model.titles, strict=True))
    if (older := len(history) - EVENTS_SHOWN) > 0:
        print(f"history  ... and {older:,} older")
    for item in history[-EVENTS_SHOWN:]:
        title = titles.get(item) or ("no title" if item in titles else "unknown to this model, left out")
        print(f"history {printable(item):>9}  {printable(title)[:TITLE_WIDTH]}")


if __name__ == "__main__":
    sys.exit(main())
