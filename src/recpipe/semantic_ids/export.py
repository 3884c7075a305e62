"""Export of sequences and semantic ids in the layout of LC-Rec, LETTER and MQL4GRec, to run their code on our split.

That code numbers items and users from 0, reads ``<name>.inter.json`` (``{"0": [17, 4, ...]}``, a user's items, oldest
first) and ``<name><suffix>`` (``{"0": ["<a_1>", ...]}``, the ids by item number), and holds out the last two events of
every user: the last is the test target, the one before it the validation target. U users, N items, L levels.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recpipe.data.atomic import atomic_file
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Sequences, Vocabulary
from recpipe.semantic_ids.id_files import level_letters, write_ids
from recpipe.semantic_ids.ids import SemanticIds

log = logging.getLogger(__name__)

SPLIT = "leave_one_out"
HELD_OUT = "the last event of a user is the test target, the one before it the validation target, all others training"


def export_sequences(
    folder: Path, name: str, *, protocol: Protocol, vocabulary: Vocabulary, train: Sequences, valid: Fold, test: Fold
) -> dict[str, Any]:
    """Write ``<name>.inter.json``, ``.item2id`` and ``.user2id``; return their description as JSON.

    Only users of both folds are written, as other code would hold out the last events of the others too, which train
    our models. Raises ValueError for a split other than leave-one-out, and for one whose held-out events are not the
    last two of a user.
    """
    _check_protocol(protocol)
    rows = _users_of_both_folds(valid, test)
    histories, targets = test.histories.select_users(rows), test.targets.select_users(rows)
    items = np.insert(histories.items, histories.offsets[1:], targets.items) - 1
    offsets = histories.offsets + np.arange(len(histories) + 1)
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(items, pa.int32())).to_pylist()
    users = histories.users.array.to_pylist()
    folder.mkdir(parents=True, exist_ok=True)
    _write_numbers(folder / f"{name}.item2id", vocabulary.ids.tolist())
    _write_numbers(folder / f"{name}.user2id", users)
    with atomic_file(folder / f"{name}.inter.json", digest=False) as part:
        part.write_text(json.dumps(dict(zip(map(str, range(len(lists))), lists, strict=True))), encoding="utf-8")
    description = {
        "files": [f"{name}.{kind}" for kind in ("inter.json", "item2id", "user2id")],
        "held_out": HELD_OUT,
        "protocol": protocol.id,
        "seen_items_excluded": protocol.exclude_seen,  # that code excludes none
        "users": len(users),
        "users_only_in_training": len(train) - len(users),
        "items": len(vocabulary),
        "events": len(items),
    }
    log.info("%s users and %s events written to %s; %s", f"{len(users):,}", f"{len(items):,}", folder, HELD_OUT)
    return description


def export_ids(folder: Path, name: str, kind: str, ids: SemanticIds, vocabulary: Vocabulary) -> dict[str, Any]:
    """Write the ids of one kind three times: tokens by item number, integers and a table by item id.

    The files are ``<name>.<kind>.index.json`` (not for more levels than letters), ``<name>.<kind>.ids.json`` and
    ``<name>.<kind>.ids.parquet``. Items of the vocabulary without an id are left out, and counted in the returned
    description (JSON). Raises ValueError where no item has an id.
    """
    rows = ids.rows(vocabulary.ids)
    present = np.flatnonzero(rows >= 0)
    if not len(present):
        raise ValueError(f"none of {len(rows)} items has a {kind} id; run `kedro run --pipelines=semantic_ids`")
    codes, keys = ids.codes[rows[present]], [str(item) for item in vocabulary.ids[present]]
    folder.mkdir(parents=True, exist_ok=True)
    files = {"integers": f"{name}.{kind}.ids.json", "parquet": f"{name}.{kind}.ids.parquet"}
    for form, file in files.items():
        write_ids(folder / file, keys, codes, form=form)
    if has_letters := _has_letters(codes):
        files["tokens"] = f"{name}.{kind}.index.json"
        numbers = [str(number) for number in present.tolist()]
        write_ids(folder / files["tokens"], numbers, codes, form="tokens", capital=kind == "image")
    missing = len(rows) - len(present)
    if missing and has_letters:
        log.warning(
            "%s of %s items have no %s id: code that looks up every item of a history in the index fails at these",
            f"{missing:,}", f"{len(rows):,}", kind,
        )  # fmt: skip
    return {
        "files": sorted(files.values()),
        "kind": kind,
        "ids": ids.hash,
        "sizes": list(ids.sizes),
        "policy": ids.about["policy"],
        "unique": ids.unique,
        "items": len(present),
        "items_without_id": missing,
    }


def _check_protocol(protocol: Protocol) -> None:
    reason = None
    if protocol.split != SPLIT:
        reason = f"protocol.split is {protocol.split}"
    elif protocol.held_out_items:
        reason = f"protocol.held_out_items is {protocol.held_out_items}, so that some events are in no part"
    elif protocol.target_events:
        reason = "protocol.target_events is set, so that the last events of a user need not be held out"
    if reason:
        raise ValueError(
            f"no export of sequences: code of other repositories holds out the last two events of every user, and "
            f"{reason}; make a split by `kedro run --pipelines=train --params protocol.split={SPLIT}` without them"
        )


def _users_of_both_folds(valid: Fold, test: Fold) -> NDArray[np.int64]:
    """(U,) rows of the test fold whose users are in the validation fold too, one event earlier.

    Raises ValueError where the last event of a history is not the validation target.
    """
    place = test.histories.users.index_in(valid.histories.users)
    rows = np.flatnonzero(place >= 0)
    last = test.histories.items[test.histories.offsets[1:][rows] - 1]
    before = valid.histories.lengths[place[rows]] + 1
    differs = (last != valid.targets.items[valid.targets.offsets[place[rows]]]) | (
        before != test.histories.lengths[rows]
    )
    if differs.any():
        raise ValueError(
            f"of {int(differs.sum()):,} users the last event before the test target is not the validation target: the "
            "folds are of two splits, run `kedro run --pipelines=train`"
        )
    return rows


def _has_letters(codes_NL: NDArray[np.int32]) -> bool:
    try:
        level_letters(codes_NL.shape[1])
    except ValueError as error:
        log.warning("no index.json: %s", error)
        return False
    return True


def _write_numbers(path: Path, names: list[str]) -> None:
    """Write a name, a tab and its number per line. Raises ValueError for names with a tab or a line break."""
    if wrong := [name for name in names if set(name) & set("\t\n\r")]:
        raise ValueError(f"{path.name} cannot hold {wrong[0]!r}, which has a tab or a line break: rename it in the log")
    with atomic_file(path, digest=False) as part:
        part.write_text("".join(f"{name}\t{number}\n" for number, name in enumerate(names)), encoding="utf-8")
