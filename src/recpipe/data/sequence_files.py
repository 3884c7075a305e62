"""Files of sequences: Arrow IPC, one record batch with a row per user, memory-mapped when read. U users, N events.

Event columns are large lists whose flat values (N,) and offsets (U + 1,) NumPy reads in place; ``is_target`` is stored
as uint8, since Arrow packs booleans into bits.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import pyarrow as pa

from recpipe.data.atomic import atomic_file, temporary_path
from recpipe.data.digests import verified
from recpipe.data.ids import Ids

HINT = "run `kedro run --pipelines=train`"
PROFILE = "user."  # prefix of profile columns
TARGETS = "target_"  # prefix of event columns of a fold's targets
EVENT_TYPES: dict[str, type] = {
    "items": np.int32, "timestamps": np.int64, "ratings": np.float32, "weights": np.float32, "is_target": np.bool_,
}  # fmt: skip


def list_column(offsets: np.ndarray, values: np.ndarray | pa.Array) -> pa.Array:
    """Make a column of lists from offsets (U + 1,) and flat values (N,), without a copy."""
    if isinstance(values, np.ndarray):
        values = pa.array(values.view(np.uint8) if values.dtype == bool else values)
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)


def list_values(batch: pa.RecordBatch, column: str) -> np.ndarray:
    """Return the flat values (N,) of a column of ``list_column``, a read-only view; ``is_target`` as bool."""
    values: np.ndarray = batch[column].flatten().to_numpy()
    return values.view(np.bool_) if column.removeprefix(TARGETS) == "is_target" else values


def list_offsets(batch: pa.RecordBatch, column: str) -> np.ndarray:
    """Return the offsets (U + 1,) int64 of a column of ``list_column``, a read-only view."""
    offsets: np.ndarray = batch[column].offsets.to_numpy()
    return offsets if offsets[0] == 0 else offsets - offsets[0]


def write_batch(batch: pa.RecordBatch, path: Path) -> None:
    """Write a file of one record batch."""
    with atomic_file(path) as part:
        _write(batch, part)


def read_batch(path: Path, columns: Sequence[str], *, check: bool = True) -> pa.RecordBatch:
    """Map a file of ``write_batch`` with at least ``columns`` into memory, after a ``check`` of its digest.

    Raises FileNotFoundError for a missing file, DigestError for a damaged one and ValueError for another format.
    """
    if not path.is_file():
        raise missing_file(path)
    if check:
        verified(path, HINT)
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if reader.num_record_batches == 1:
            batch = reader.get_batch(0)
            batch.validate(full=True)  # of ids and offsets, not of every event
            if {*columns} <= {*batch.schema.names}:
                return batch
            problem = f"it has the columns {', '.join(batch.schema.names)}, and not all of {', '.join(columns)}"
            raise ValueError(f"{path} has other content: {problem}; {HINT}")
        problem = f"it has {reader.num_record_batches} record batches instead of one"
    except pa.ArrowInvalid as error:
        problem = str(error).strip().rstrip(".")
    raise ValueError(f"{path} is no complete Arrow file of sequences ({problem}); {HINT}")


def missing_file(path: Path) -> FileNotFoundError:
    """Return the error for a missing file, which names a Parquet file of an earlier version where there is one."""
    old = path.with_suffix(".parquet")
    earlier = f"; {old.name} beside it is of an earlier version, which this one does not read" if old.is_file() else ""
    return FileNotFoundError(f"{path} is missing{earlier}; {HINT}")


@dataclass(frozen=True)
class SourceFile:
    """A complete file, which is replaced but never changed, as it was when it was read."""

    path: Path
    state: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> SourceFile:
        """Record the state of a file."""
        return cls(Path(path).absolute(), _state(path))

    def link(self, path: Path) -> bool:
        """Give the file the name ``path`` too, by a hard link or a copy; return False where it has been replaced."""
        try:
            if _state(self.path) != self.state:
                return False
        except FileNotFoundError:
            return False
        if path.exists() and path.samefile(self.path):
            return True
        with atomic_file(path) as part:
            part.unlink()
            try:
                os.link(self.path, part)
            except OSError:  # another disk, or a file system without links
                shutil.copyfile(self.path, part)
        return True


def _state(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


class SequenceWriter:
    """Writer of one file of sequences from chunks of events, under bounded memory.

    Chunks are appended to a raw file per column, which are mapped into memory and copied into the final file at the
    end, so that the disk holds the events twice for a moment. The file appears, complete, when the ``with`` block ends;
    nothing does if the block raises.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """Open a writer of ``columns``, which are event columns such as items; those of targets have a prefix."""
        self.path, self._types = Path(path), {name: EVENT_TYPES[name.removeprefix(TARGETS)] for name in columns}
        self._counts = dict.fromkeys(columns, 0)
        self._streams: dict[str, BinaryIO] = {}
        self._stack, self._is_closed = ExitStack(), False

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._part = stack.enter_context(atomic_file(self.path))
            self._folder = temporary_path(self.path, "part")
            self._folder.mkdir()
            stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
            for name in self._types:
                self._streams[name] = stack.enter_context((self._folder / name).open("wb"))
            self._stack = stack.pop_all()
        return self

    def append(self, **values: np.ndarray) -> None:
        """Append a chunk (n,) of every column, in the order of users; columns of targets have a length of their own.

        Raises ValueError for other columns than those of the writer.
        """
        if values.keys() != self._types.keys():
            raise ValueError(f"a chunk has the columns {', '.join(values)} instead of {', '.join(self._types)}")
        for name, chunk in values.items():
            self._streams[name].write(np.ascontiguousarray(chunk, self._types[name]).data)
            self._counts[name] += len(chunk)

    def close(
        self,
        users: Ids | pa.Array,
        offsets: np.ndarray,
        *,
        target_offsets: np.ndarray | None = None,
        profiles: Mapping[str, pa.Array] | None = None,
    ) -> None:
        """Write the file: ids (U,), offsets (U + 1,) into the appended events, profiles (U,) by name.

        Raises ValueError where the offsets do not end at the number of appended events.
        """
        columns: dict[str, pa.Array] = {"user_id": Ids(users).array}
        for name, kind in self._types.items():
            self._streams[name].close()
            of_column = target_offsets if name.startswith(TARGETS) else offsets
            if of_column is None or len(of_column) != len(users) + 1 or of_column[-1] != self._counts[name]:
                raise ValueError(
                    f"{self.path.name}: {self._counts[name]:,} events in the column {name} and {len(users):,} users do "
                    f"not fit the offsets{'' if of_column is None else f' to {of_column[-1]:,} of {len(of_column):,}'}"
                )
            columns[name] = list_column(of_column, _mapped(self._folder / name, kind))
        columns |= {f"{PROFILE}{name}": column for name, column in (profiles or {}).items()}
        _write(pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns)), self._part)
        self._is_closed = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self._is_closed:
            kind, error = RuntimeError, RuntimeError(f"{self.path} was not closed with its users and offsets")
            self._stack.__exit__(kind, error, None)
            raise error
        self._stack.__exit__(kind, error, trace)


def _write(batch: pa.RecordBatch, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _mapped(path: Path, kind: type) -> pa.Array:
    """Map a raw file as an Arrow array."""
    stored = np.dtype(np.uint8 if kind is np.bool_ else kind)
    n = path.stat().st_size // stored.itemsize
    buffer = pa.memory_map(str(path)).read_buffer() if n else pa.py_buffer(b"")
    return pa.Array.from_buffers(pa.from_numpy_dtype(stored), n, [None, buffer])
