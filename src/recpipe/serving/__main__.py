"""Recommendations for one person, from any bundle.

python -m recpipe.serving data/06_models/online_retail/tiger/seed_42 --find lantern
python -m recpipe.serving data/06_models/online_retail/tiger/seed_42 --items 21754,85123A --top 5
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pyarrow as pa

from recpipe.evaluation.recommendations import recommend
from recpipe.serving.recommender import bundle_folder, items_titled
from recpipe.training.bundle import Bundle, load_bundle

SOMEBODY = "somebody"
WIDEST = 60  # characters of a title


def main(arguments: list[str] | None = None) -> int:
    """Prints a table, or JSON lines; 2 where the request cannot be met."""
    asked = _parser().parse_args(arguments)
    try:
        bundle = load_bundle(bundle_folder(asked.run))
        if asked.find is not None:
            return _show_titles(bundle, asked.find)
        found = recommend(
            bundle,
            {SOMEBODY: asked.items},
            asked.top,
            exclude_seen=bundle.protocol.exclude_seen if asked.seen is None else not asked.seen,
            candidates=asked.candidates,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if asked.json:
        for row in found.drop_columns(["user_id"]).to_pylist():
            print(json.dumps(row, ensure_ascii=False))
    else:
        _show(bundle, asked.items, found)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m recpipe.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", type=Path, help="data/06_models/<dataset>/<model>/seed_<seed>, or a bundle in it"
    )
    parser.add_argument(
        "--items", type=_ids, default=[], help="ids of the history, oldest first, as a,b,c; none: a new user"
    )
    parser.add_argument("--top", type=int, default=10, help="how many to recommend (10)")
    parser.add_argument(
        "--candidates", type=_ids, help="ids that may be recommended, as a,b,c; all by default"
    )
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument("--seen", action="store_true", default=None, help="also what is in the history")
    seen.add_argument(
        "--unseen", dest="seen", action="store_false", help="never that; the protocol's way by default"
    )
    parser.add_argument("--find", metavar="TEXT", help="list items whose title contains it, instead")
    parser.add_argument("--json", action="store_true", help="one JSON object per recommendation")
    return parser


def _ids(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _show_titles(bundle: Bundle, text: str) -> int:
    found = items_titled(bundle, text)
    for item, title in found[:50]:
        print(f"{item:>12}  {title}")
    if len(found) > 50:
        print(f"and {len(found) - 50} more")
    return 0 if found else 1


def _show(bundle: Bundle, history: list[str], found: pa.Table) -> None:
    titles = dict(zip(bundle.vocabulary.ids.tolist(), bundle.titles, strict=True))
    print(f"{bundle.name} on {bundle.protocol.dataset}, protocol {bundle.protocol.id}")
    for item in history:
        known = titles.get(item) or ("no title" if item in titles else "unknown to this model, left out")
        print(f"   had {item:>12}  {known[:WIDEST]}")
    codes = [name for name in found.column_names if name.endswith("_codes")]
    print(f"{'rank':>4} {'item':>12}  {'title':{WIDEST}} {'probability':>11}  {'  '.join(codes)}")
    for row in found.to_pylist():
        share = "" if row["probability"] is None else f"{row['probability']:.2%}"
        ids = "  ".join("-" if row[name] is None else ".".join(map(str, row[name])) for name in codes)
        print(f"{row['rank']:>4} {row['item_id']:>12}  {row['title'][:WIDEST]:{WIDEST}} {share:>11}  {ids}")
    if found.num_rows and found["source"][0].as_py() != "model":
        print("No event that the model knows: this is what users without history get.")


if __name__ == "__main__":
    sys.exit(main())
