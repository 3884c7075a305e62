"""Item vectors with what they were made from: a key per item's content, a fingerprint for the vector space.

Shape letters: N items, D width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recpipe.data.atomic import atomic_file

METADATA = b"recpipe.embeddings"


@dataclass(frozen=True, eq=False)
class Embeddings:
    """One row per item of the items table, in its order. An item without content is a mask, not a random vector.

    Raises ValueError for ids that occur twice, vectors that are not finite, and shapes that do not agree.
    """

    item_ids: NDArray[np.object_]  # (N,) str, unique
    vectors: NDArray[np.float32]  # (N, D); zero where not present; D is 0 if no item has content
    present: NDArray[np.bool_]  # (N,)
    keys: NDArray[np.object_]  # (N,) hex of the item's content under this encoder, "" where not present
    space: str  # hex: all that decides a vector, but for the item
    about: dict[str, Any] = field(default_factory=dict)  # for people

    def __post_init__(self) -> None:
        n = len(self.item_ids)
        shapes = {"present": self.present.shape, "keys": self.keys.shape, "vectors": self.vectors.shape[:1]}
        for name, shape in shapes.items():
            if shape != (n,):
                raise ValueError(f"{name} has shape {shape} for {n} items; there must be one row per item")
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float32:
            found = f"{self.vectors.dtype} {self.vectors.shape}"
            raise ValueError(f"vectors are {found}; they must be float32 (items, width)")
        check_unique(self.item_ids)
        _check_finite(self.vectors, self.item_ids)
        if self.vectors[~self.present].any() or (self.keys[~self.present] != "").any():
            raise ValueError("items that are not present must have a zero vector and an empty key")

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def width(self) -> int:
        """D."""
        return self.vectors.shape[1]

    @cached_property
    def hash(self) -> str:
        """Hex of the space and of all (item, key), in whichever order: equal content, equal hash, anywhere."""
        order = np.argsort(self.item_ids, kind="stable")
        return digest(self.space, self.item_ids[order].tolist(), self.keys[order].tolist())

    def rows(self, item_ids: Sequence[str] | NDArray[np.object_]) -> NDArray[np.int64]:
        """Positions (n,) of ids; -1 where the id is unknown."""
        known = pa.array(self.item_ids, pa.string())
        found = pc.index_in(pa.array(item_ids, pa.string()), value_set=known)
        return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)

    def write(self, path: Path) -> None:
        """One Parquet file: item_id, key, vector (null where not present); the rest as JSON in its metadata."""
        lengths = self.present * self.width
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
        values = pa.array(self.vectors[self.present].reshape(-1))
        # Lists of any length, since Arrow cannot read back a Parquet column of fixed-size lists that holds nulls.
        columns = {
            "item_id": pa.array(self.item_ids, pa.string()),
            "key": pa.array(self.keys, pa.string()),
            "vector": pa.LargeListArray.from_arrays(offsets, values, mask=pa.array(~self.present)),
        }
        described = {"format": 1, "space": self.space, "width": self.width, "about": self.about}
        table = pa.table(columns).replace_schema_metadata({METADATA: json.dumps(described)})
        with atomic_file(path) as temporary:
            pq.write_table(table, temporary, compression="zstd", use_dictionary=["item_id", "key"])

    @classmethod
    def read(cls, path: Path) -> Embeddings:
        """What ``write`` wrote. Raises ValueError for any other Parquet file."""
        table = pq.read_table(path)
        described = json.loads((table.schema.metadata or {}).get(METADATA, b"null"))
        if described is None:
            raise ValueError(
                f"{path} holds no embeddings of recpipe's; make them with `kedro run --pipelines=embed`"
            )
        column = table["vector"].combine_chunks()
        present = column.is_valid().to_numpy(zero_copy_only=False)
        vectors = np.zeros((table.num_rows, described["width"]), np.float32)
        if described["width"]:
            vectors[present] = column.flatten().to_numpy().reshape(-1, described["width"])
        ids, keys = (np.array(table[name].to_pylist(), dtype=object) for name in ("item_id", "key"))
        return cls(ids, vectors, present, keys, described["space"], described["about"])


def concatenate_embeddings(text: Embeddings, image: Embeddings) -> Embeddings:
    """Both side by side, (N, D + D'): each unit length per item times 1/sqrt(2), or zero where an item lacks it.

    An item is present if it has either. Raises ValueError if the two are not of the same items in the same order.
    """
    if not np.array_equal(text.item_ids, image.item_ids):
        raise ValueError(
            f"text embeddings are of {len(text):,} items and image embeddings of {len(image):,}, not of the same "
            "ones in the same order; make both anew with `kedro run --pipelines=embed`"
        )
    present = text.present | image.present
    pairs = zip(text.keys.tolist(), image.keys.tolist(), present.tolist(), strict=True)
    keys = [digest(*pair) if there else "" for *pair, there in pairs]
    about = {"modality": "text_image", "items": len(text), "without_content": int((~present).sum())}
    return Embeddings(
        text.item_ids,
        np.concatenate([unit_rows(text.vectors), unit_rows(image.vectors)], axis=1) * np.float32(0.5**0.5),
        present,
        np.array(keys, dtype=object),
        digest("joined", text.space, image.space),
        {**about, "text": text.about, "image": image.about},
    )


def unit_rows(x_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length one; zero rows stay zero."""
    norms = np.linalg.norm(x_ND, axis=1, keepdims=True)
    return (x_ND / np.where(norms > 0, norms, 1)).astype(np.float32)


def digest(*parts: Any) -> str:
    """sha256, in hex, of anything that JSON can hold."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def text_space(encoder: str, template: str) -> str:
    """The space of texts by a template under the encoder of this fingerprint."""
    return digest("text", encoder, template)


def content_keys(space: str, contents: Sequence[str | None]) -> NDArray[np.object_]:
    """Hex keys (N,) of texts under an encoder, "" for None."""
    start = hashlib.sha256(space.encode())
    return np.array([_keyed(start, text) if text is not None else "" for text in contents], dtype=object)


def _keyed(start: Any, text: str) -> str:
    hashed = start.copy()
    hashed.update(text.encode("utf-8", "surrogatepass"))
    return str(hashed.hexdigest())


def check_unique(item_ids: Sequence[str] | NDArray[np.object_]) -> None:
    """Raises ValueError that names the first ids that occur twice."""
    counted = pc.value_counts(pa.array(item_ids, pa.string()))
    twice = counted.field("values").filter(pc.greater(counted.field("counts"), 1))
    if len(twice):
        names = ", ".join(repr(name) for name in twice[:3].to_pylist())
        raise ValueError(
            f"{len(twice)} item ids occur more than once in the items table, such as {names}; ids must be unique"
        )


def _check_finite(x_ND: NDArray[np.float32], item_ids: NDArray[np.object_]) -> None:
    bad = ~np.isfinite(x_ND.sum(axis=1, dtype=np.float64)) if x_ND.size else np.zeros(len(x_ND), bool)
    if bad.any():
        names = ", ".join(repr(name) for name in item_ids[bad][:3])
        raise ValueError(
            f"vectors of {int(bad.sum())} items hold NaN or infinity, such as those of {names}; an encoder in fp32 "
            "gives finite ones: set `precision: fp32`"
        )
