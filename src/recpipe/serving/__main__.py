"""Recommendations for one user, from any bundle.

python -m recpipe.serving data/06_models/online_retail/tiger/seed_42 --find lantern
python -m recpipe.serving data/06_models/online_retail/tiger/seed_42 --items 21754,85123A --top 5
python -m recpipe.serving data/06_models/online_retail/sasrec/seed_42 --similar 21754
python -m recpipe.serving data/06_models/my_log/sasrec/seed_42 --item 'Tea, green' --item ' 7'
python -m recpipe.serving data/06_models/online_retail/tiger/seed_42 --items 21754 --search stochastic=true
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from recpipe.config import read_yaml
from recpipe.evaluation.content_slots import ContentSlots
from recpipe.evaluation.recommendations import COLD_USERS
from recpipe.reporting.formatting import printable
from recpipe.serving.recommender import bundle_folder, items_titled, recommend, similar_items
from recpipe.training.bundle import Bundle, load_bundle

TITLE_WIDTH = 60
TITLES_SHOWN = 50


def main(arguments: list[str] | None = None) -> int:
    """Print recommendations as a table or as JSON lines; exit status 2 for an invalid request."""
    options = _parser().parse_args(arguments)
    try:
        bundle = load_bundle(bundle_folder(options.run))
        history = [*options.items, *_trimmed(options.item, bundle)]
        candidates = None
        if options.candidates is not None or options.candidate is not None:
            candidates = [*(options.candidates or ()), *_trimmed(options.candidate or (), bundle)]
        if options.find is not None:
            hits = items_titled(bundle, options.find)
            for item, title in hits[:TITLES_SHOWN]:
                print(f"{printable(item):>12}  {printable(title)}")
            if len(hits) > TITLES_SHOWN:
                print(f"and {len(hits) - TITLES_SHOWN} more")
            return 0 if hits else 1
        if options.similar is not None:
            (item,) = _trimmed([options.similar], bundle)
            _print_similar(similar_items(bundle, item, options.top), options.json)
            return 0
        slots = None
        if options.slots:
            if options.content is None:
                raise ValueError("--slots needs --content, the run of a model of type content_knn")
            slots = ContentSlots(options.slots, load_bundle(bundle_folder(options.content)))
        table = recommend(
            bundle,
            {"user": history},
            options.top,
            exclude_seen=bundle.protocol.exclude_seen if options.seen is None else not options.seen,
            candidates=candidates,
            slots=slots,
            search=dict(options.search),
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        for row in table.drop_columns(["user_id"]).to_pylist():
            print(json.dumps(row, ensure_ascii=False))
    else:
        _print_table(bundle, history, table)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m recpipe.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="data/06_models/<dataset>/<model>/seed_<seed>, or a bundle")
    parser.add_argument(
        "--items", type=_ids, default=[], help="ids of the history, oldest first, as a,b,c; none: a new user"
    )
    parser.add_argument(
        "--item", action="append", default=[], help="one id of the history as it is, also with commas; repeatable"
    )
    parser.add_argument("--top", type=int, default=10, help="number of recommendations (10)")
    parser.add_argument("--candidates", type=_ids, help="ids that may be recommended, as a,b,c; all by default")
    parser.add_argument("--candidate", action="append", help="one such id as it is, also with commas; repeatable")
    parser.add_argument(
        "--slots", type=float, default=0.0, help="share of places for items without training events, as 0.2"
    )
    parser.add_argument("--content", type=Path, help="run of the model that fills them, such as text_knn")
    parser.add_argument(
        "--search",
        metavar="KEY=VALUE",
        type=_setting,
        action="append",
        default=[],
        help="setting of the search, such as beam=50, stochastic=true, temperatures=[1,1,2,2]; repeatable",
    )
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument("--seen", action="store_true", default=None, help="include items of the history")
    seen.add_argument("--unseen", dest="seen", action="store_false", help="exclude them; default: as in the protocol")
    parser.add_argument("--find", metavar="TEXT", help="list items whose title contains it, instead")
    parser.add_argument("--similar", metavar="ITEM", help="list items nearest to it by the model's vectors, instead")
    parser.add_argument("--json", action="store_true", help="one JSON object per recommendation")
    return parser


def _print_similar(table: pa.Table, as_json: bool) -> None:
    if not as_json:
        print(f"{'item':>12}  {'title':{TITLE_WIDTH}} similarity")
    for row in table.to_pylist():
        item, title = printable(row["item_id"]), printable(row["title"] or "")[:TITLE_WIDTH]
        line = f"{item:>12}  {title:{TITLE_WIDTH}} {row['similarity']:.3f}"
        print(json.dumps(row, ensure_ascii=False) if as_json else line)


def _ids(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _setting(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} has no value; write beam=50")
    try:
        return key, read_yaml(value)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be read; lists are written [1,1,2,2]") from error


def _trimmed(ids: Iterable[str], bundle: Bundle) -> list[str]:
    """Remove the blanks around unknown ids, as ingest does."""
    vocabulary = {*bundle.vocabulary.ids.tolist()}
    return [item if item in vocabulary else item.strip() for item in ids]


def _print_table(bundle: Bundle, history: list[str], table: pa.Table) -> None:
    titles = dict(zip(bundle.vocabulary.ids.tolist(), bundle.titles, strict=True))
    print(f"{bundle.name} on {bundle.protocol.dataset}, protocol {bundle.protocol.id}")
    for item in history:
        title = titles.get(item) or ("no title" if item in titles else "unknown to this model, left out")
        print(f"history {printable(item):>9}  {printable(title)[:TITLE_WIDTH]}")
    codes = [name for name in table.column_names if name.endswith("_codes")]
    print(f"{'rank':>4} {'item':>12}  {'title':{TITLE_WIDTH}} {'probability':>11}  {'  '.join(codes)}")
    for row in table.to_pylist():
        chance = "" if row["probability"] is None else f"{row['probability']:.2%}"
        ids = "  ".join("-" if row[name] is None else ".".join(map(str, row[name])) for name in codes)
        item, title = printable(row["item_id"]), printable(row["title"])[:TITLE_WIDTH]
        print(f"{row['rank']:>4} {item:>12}  {title:{TITLE_WIDTH}} {chance:>11}  {ids}")
    if COLD_USERS in table["source"].to_pylist():
        print("No known item in the history: these are recommendations for users without history.")


if __name__ == "__main__":
    sys.exit(main())
