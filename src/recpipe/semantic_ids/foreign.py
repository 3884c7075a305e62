"""Import of semantic ids that others published: their items matched with the catalogue, their collisions resolved.

Shape letters: N items, L levels.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recpipe.config import ConfigError, build_config, check_known
from recpipe.semantic_ids.build import collaborative_neighbours
from recpipe.semantic_ids.collisions import REFUSE, colliding, resolve
from recpipe.semantic_ids.gate import Gate, apply_gate
from recpipe.semantic_ids.id_files import IdTable, read_ids, read_item_map
from recpipe.semantic_ids.ids import SemanticIds
from recpipe.semantic_ids.quality import measure_neighbours, measure_quality
from recpipe.semantic_ids.vector_rows import VectorRows

if TYPE_CHECKING:
    from recpipe.config.schema import SemanticIdsConfig
    from recpipe.content.embeddings import Embeddings

log = logging.getLogger(__name__)

KIND = "foreign"
WHERE = f"semantic_ids.kinds.{KIND}"
POLICIES = ("extra_digit", "keep", REFUSE)  # the others move items by their vectors, which a file of ids lacks
LEAST_MATCH = 0.5  # share of the catalogue that the file must have; below, it is one of another catalogue
SHOWN = 3  # items in a message


def import_ids(item_ids: NDArray[np.object_], raw_folder: Path, config: SemanticIdsConfig) -> SemanticIds:
    """Read the ids of ``item_ids`` (N,) from the file that ``config.source`` names in ``raw_folder``.

    Items of the file that the catalogue lacks are ignored. Raises ConfigError for settings that do not fit, ValueError
    for a bad file (see ``read_ids``), for a file of another catalogue, for numbers that need a map, for more missing
    items than ``source.missing`` allows, for codes above ``source.codes``, and for collisions where
    ``config.collisions`` is refuse.
    """
    source = config.source
    if source is None or source.file is None:
        raise ConfigError(f"{WHERE}.source.file is not set: name the file of ids in the folder of the raw data")
    check_known(config.collisions, POLICIES, what=f"{WHERE}.collisions", hint=" (the others need vectors of the items)")
    path = raw_file(raw_folder, source.file, setting=f"{WHERE}.source.file")
    table = read_ids(path, item_id=source.item_id, column=source.column)
    keys = table.keys
    if source.item_map is not None:
        keys = _mapped(keys, raw_file(raw_folder, source.item_map, setting=f"{WHERE}.source.item_map"), path)
    rows = _rows(item_ids, keys, path, source.missing, are_mapped=source.item_map is not None)
    present = rows >= 0
    codes, sizes = table.codes[rows[present]], _sizes(table, source.codes, path)
    if config.collisions == REFUSE and (count := int(colliding(codes, codes[:0]).sum())):
        raise ValueError(
            f"{path.name}: {count:,} of {len(codes):,} items share their codes with another, which {WHERE}.collisions="
            f"{REFUSE} does not allow; set it to {' or '.join(POLICIES[:-1])}"
        )
    resolution = resolve(
        config.collisions,
        codes,
        sizes,
        # equally near: extra digits count in the order of the catalogue; a view, since there may be a million codes
        lambda rows, _, level: np.broadcast_to(np.float32(0), (len(rows), sizes[level])),
        extra_codes=config.extra_codes,
    )
    digest = _digest(keys, table.codes)
    counts = {
        "items": len(item_ids),
        "without_content": int((~present).sum()),
        "unused": len(keys) - int(present.sum()),
        **resolution.counts,
    }
    log.info("foreign ids of %s: %s", path.name, ", ".join(f"{n:,} {what}" for what, n in counts.items()))
    return SemanticIds(
        item_ids[present],
        resolution.codes,
        codes,
        np.zeros(len(codes), bool),
        resolution.sizes,
        {
            "quantizer": digest,
            "space": digest,
            "embeddings": "",
            "policy": config.collisions,
            "modality": KIND,
            "file": path.name,
            "letters": table.letters,
            "counts": counts,
        },
    )


def measure_foreign(
    ids: SemanticIds,
    config: SemanticIdsConfig,
    *,
    embeddings: Embeddings | None = None,
    categories: list[str | None] | None = None,
    collaborative: Embeddings | None = None,
) -> dict[str, Any]:
    """Measure the quality of imported ids and compare it with the gate, as JSON; ``build.check_ids`` raises.

    Neighbours are those of ``embeddings``, over the items that have one; without embeddings they are not measured. All
    else is of all items with an id.
    ``categories``: one per item of ``ids``. ``collaborative``: item vectors of a trained model, compared likewise. The
    loss of reconstruction is unknown, since the quantizer is.
    """
    quality = measure_quality(
        ids.codes, ids.quantized, ids.sizes, vectors_ND=None, categories=categories, seed=config.seed
    )
    if embeddings is not None:
        quality["neighbours"] = _neighbours(ids, embeddings, seed=config.seed)
    quality = apply_gate(quality, build_config(Gate, config.gate, where=f"{WHERE}.gate"))
    file = ids.about["file"]
    for check in quality["checks"]:
        measured = check["advice"].partition(": ")[0]
        check["advice"] = (
            f"{measured}: ids of {file} do not change here, take others or set {WHERE}.gate.{check['name']}"
        )
    return {
        **quality,
        "modality": KIND,
        "quantizer": {"name": file, "hash": ids.about["quantizer"]},
        "policy": ids.about["policy"],
        "ids": ids.hash,
        "sizes": list(ids.sizes),
        "without_content": ids.about["counts"]["without_content"],
        "added": 0,
        "embeddings": {} if embeddings is None else embeddings.about,
        **collaborative_neighbours(ids, collaborative, seed=config.seed),
    }


def _neighbours(ids: SemanticIds, embeddings: Embeddings, *, seed: int) -> dict[str, Any] | None:
    """Measure neighbours over the items that have a vector. Raises ValueError where none has."""
    rows = embeddings.rows(ids.item_ids)
    present = (rows >= 0) & embeddings.present[rows]
    if not present.any():
        raise ValueError(
            f"no item with an imported id has a vector: set {WHERE}.source.vectors to null, or make vectors with "
            "`kedro run --pipelines=embed`"
        )
    return measure_neighbours(ids.quantized[present], VectorRows(embeddings.vectors, rows[present]), seed=seed)


def raw_file(folder: Path, name: str, *, setting: str) -> Path:
    """Return the path of a file in the folder of the raw data. Raises ValueError for one outside of it."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{setting} is {name!r}, which is outside {folder}: put the file there")
    if not path.is_file():
        raise ValueError(f"{setting} is {name!r}, which is not in {folder}: put the file there")
    return path


def _mapped(keys: NDArray[np.object_], path: Path, file: Path) -> NDArray[np.object_]:
    """Replace dense numbers by item ids. Raises ValueError for numbers that the map lacks."""
    item_of = read_item_map(path)
    if unknown := [key for key in keys if key not in item_of]:
        raise ValueError(
            f"{len(unknown):,} of {len(keys):,} keys of {file.name} are not in {path.name}: {_names(unknown)}; "
            "the map has to be of the same repository and data set as the ids"
        )
    return np.array([item_of[key] for key in keys], object)


def _rows(
    items: NDArray[np.object_], keys: NDArray[np.object_], path: Path, allowed: float, *, are_mapped: bool
) -> NDArray[np.int64]:
    """(N,) row of each item in the file, -1 without one.

    Raises ValueError for too many missing items, and for keys 0, 1, 2, ... without a map that are not exactly the item
    ids: item ids of many data sets are numbers, some of which any such file has.
    """
    position = {key: row for row, key in enumerate(keys.tolist())}
    rows = np.array([position.get(item, -1) for item in items.tolist()], np.int64)
    missing = items[rows < 0]
    share = len(missing) / max(len(items), 1)
    are_numbers = not are_mapped and set(keys.tolist()) == {str(number) for number in range(len(keys))}
    hint = f". The file counts items from 0: name their ids in {WHERE}.source.item_map, a file such as item2id"
    if share > 1 - LEAST_MATCH:
        raise ValueError(
            f"{path.name} has ids of {len(items) - len(missing):,} of {len(items):,} items: another catalogue. Its "
            f"keys are {_names(keys)}, items are {_names(items)}{hint if are_numbers else ''}"
        )
    if are_numbers and (len(missing) or len(keys) != len(items)):
        lowest, highest = min(items.tolist(), key=_number), max(items.tolist(), key=_number)
        raise ValueError(
            f"{path.name} has the keys 0 to {len(keys) - 1}, and the {len(items):,} item ids are {lowest!r} to "
            f"{highest!r}, so that equal numbers need not be the same item{hint}"
        )
    if share > allowed:
        raise ValueError(
            f"{len(missing):,} of {len(items):,} items have no id in {path.name}, such as {_names(missing)}: complete "
            f"the file, or set {WHERE}.source.missing to {np.ceil(1000 * share) / 1000:g} or more, so that generative "
            "models leave these out of lists"
        )
    return rows


def _number(item: str) -> tuple[int, str]:
    """Sort key of item ids: numbers by their value, before all others."""
    return (int(item), "") if item.isdecimal() else (1 << 62, item)


def _sizes(table: IdTable, codes: int | list[int] | None, path: Path) -> tuple[int, ...]:
    """(L,) codes per level, by default one more than the largest. Raises ValueError for a code above."""
    largest, levels = table.codes.max(0), table.codes.shape[1]
    if codes is None:
        return tuple(int(code) + 1 for code in largest)
    sizes = (codes,) * levels if isinstance(codes, int) else tuple(codes)
    if len(sizes) != levels:
        raise ValueError(f"{WHERE}.source.codes has {len(sizes)} numbers, and ids of {path.name} {levels} levels")
    for level, (size, code) in enumerate(zip(sizes, largest.tolist(), strict=True)):
        if code >= size:
            key = table.keys[int(table.codes[:, level].argmax())]
            raise ValueError(
                f"{path.name}: item {key!r} has code {code} at level {level + 1}; {WHERE}.source.codes allows 0 to "
                f"{size - 1}: raise it, or set it to null"
            )
    return sizes


def _digest(item_ids: NDArray[np.object_], codes_NL: NDArray[np.int32]) -> str:
    """Hex digest of items and codes, whatever the order and the format of the file."""
    order = np.argsort(item_ids.astype(str), kind="stable")
    content = hashlib.sha256("\n".join(item_ids[order].tolist()).encode())
    content.update(np.ascontiguousarray(codes_NL[order], "<i4").tobytes())
    return content.hexdigest()


def _names(values: Any) -> str:
    names = [str(value) for value in values[:SHOWN]]
    return ", ".join(map(repr, names)) or "none"
