"""External ids as an immutable Arrow array, which may be memory-mapped; strings are made only where one is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

IDS_AT_ONCE = 1 << 16  # strings that an iteration holds at a time
MAX_STRING_BYTES = 2**31 - 1  # of a pa.StringArray, whose offsets are int32


class Ids:
    """Ids (n,) of users, in 8 bytes or less each besides their text."""

    __slots__ = ("array",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, ids: Ids | pa.Array | pa.ChunkedArray | np.ndarray | Iterable[str]) -> None:
        """Wrap an Arrow array of strings as it is, and convert arrays and lists of str.

        Raises TypeError for values that are no strings, ValueError for missing ones.
        """
        self.array: pa.Array = ids.array if isinstance(ids, Ids) else _string_array(ids)
        if self.array.null_count:
            raise ValueError(f"{self.array.null_count:,} of {len(self.array):,} ids are missing; give every row one")

    def __len__(self) -> int:
        return len(self.array)

    def __iter__(self) -> Iterator[str]:
        for part in self.parts():
            yield from part.tolist()

    @overload
    def __getitem__(self, key: int | np.integer[Any]) -> str: ...
    @overload
    def __getitem__(self, key: slice | np.ndarray | list[int]) -> Ids: ...
    def __getitem__(self, key: Any) -> str | Ids:
        """Return one id, or the ids of a slice, of the rows (m,) from 0, or where a mask (n,) is True."""
        if isinstance(key, int | np.integer):
            value: str = self.array[int(key)].as_py()
            return value
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return Ids(self.array.slice(start, max(stop - start, 0)))
            key = np.arange(start, stop, step)
        key = np.asarray(key)
        if key.dtype == bool:
            return Ids(self.array.filter(pa.array(key)))
        return Ids(self.array.take(pa.array(key.astype(np.int64, copy=False))))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ids):
            return NotImplemented
        kind = _common_type(self, other)
        return bool(_of_type(self.array, kind).equals(_of_type(other.array, kind)))

    def __repr__(self) -> str:
        first = ", ".join(map(repr, self[:3].tolist()))
        return f"Ids([{first}{', …' if len(self) > 3 else ''}], n={len(self)})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Convert to an object array of str, for small arrays."""
        values = np.empty(len(self), object)
        values[:] = self.tolist()
        return values if dtype is None else values.astype(dtype)

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        return self.array if type is None else _of_type(self.array, type)

    def tolist(self) -> list[str]:
        """Convert to a list of str, for small arrays."""
        values: list[str] = self.array.to_pylist()
        return values

    def parts(self, size: int = IDS_AT_ONCE) -> Iterator[Ids]:
        """Yield views of at most ``size`` ids, in order."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def index_in(self, other: Ids) -> np.ndarray:
        """Return the place (n,) int64 of every id among ``other``, -1 for those it does not contain."""
        if not len(other):
            return np.full(len(self), -1, np.int64)
        kind = _common_type(self, other)
        places = pc.index_in(_of_type(self.array, kind), value_set=_of_type(other.array, kind))
        result: np.ndarray = pc.fill_null(places, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        return result

    @classmethod
    def concatenate(cls, *parts: Ids) -> Ids:
        """Join parts in order."""
        kind = _common_type(*parts)
        kind = kind if sum(part.array.nbytes for part in parts) <= MAX_STRING_BYTES else pa.large_string()
        return cls(pa.concat_arrays([_of_type(part.array, kind) for part in parts]))


def _common_type(*parts: Ids) -> pa.DataType:
    """Return large_string if one of the arrays is, else string: not all of the former can be cast to the latter."""
    return pa.large_string() if any(part.array.type == pa.large_string() for part in parts) else pa.string()


def _of_type(array: pa.Array, kind: pa.DataType) -> pa.Array:
    return array if array.type == kind else array.cast(kind)


def _string_array(ids: Any) -> pa.Array:
    if not isinstance(ids, pa.Array | pa.ChunkedArray):
        values = ids if isinstance(ids, np.ndarray | list) else list(ids)
        ids = pa.array(values, pa.string(), from_pandas=True)  # chunks where the text is longer than one array holds
    if isinstance(ids, pa.ChunkedArray):
        is_long = sum(chunk.nbytes for chunk in ids.chunks) > MAX_STRING_BYTES
        ids = ids.cast(pa.large_string()).combine_chunks() if is_long else ids.combine_chunks()
    if pa.types.is_dictionary(ids.type):
        ids = ids.dictionary_decode()
    if ids.type not in (pa.string(), pa.large_string()):
        raise TypeError(f"ids are strings, not {ids.type}; cast them to string")
    return ids
