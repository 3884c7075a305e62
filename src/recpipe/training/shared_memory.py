"""Objects for other processes of this machine, pickled without their arrays, which all processes map.

Arrays of a file that is mapped into memory are mapped from that file. Others are copied to memory without a name once,
however many processes read them. What a process writes to them is its own.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 64  # bytes, of arrays in the shared memory
LARGE = 1 << 16  # bytes, from which on the file of an array is looked for
MAPS = Path("/proc/self/maps")  # of Linux; elsewhere arrays of files are copied as well


class FilePlace(NamedTuple):
    """Location of bytes in a file."""

    path: str
    inode: int
    offset: int
    size: int


@contextlib.contextmanager
def shared_memory(payload: object) -> Iterator[tuple[bytes, int]]:
    """Write ``payload`` as a pickle; yield it with the places of its buffers, and a descriptor of their memory.

    Raises ValueError where it cannot be pickled.
    """
    file, buffers = BytesIO(), list[pickle.PickleBuffer]()
    try:
        _Pickler(file, buffers).dump(payload)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"train.devices is more than 1, and the training cannot be sent to other processes ({error}); define the "
            "model and its validation in a module, not within a function, or set train.devices=1"
        ) from None
    places, end, mappings = list[tuple[int, int] | FilePlace](), 0, _mappings()
    with _anonymous_file() as memory:
        for buffer in buffers:
            view = buffer.raw()
            place = _file_place(view, mappings) if view.nbytes >= LARGE else None
            if place is None:
                memory.seek(end)
                memory.write(view)
            places.append(place or (end, view.nbytes))
            end += 0 if place else -(-view.nbytes // ALIGNMENT) * ALIGNMENT
        memory.truncate(max(end, 1))
        memory.flush()
        yield pickle.dumps((places, file.getvalue())), memory.fileno()


def load_shared(header: IO[bytes], memory: int) -> Any:
    """Load what ``shared_memory`` gave. Raises ValueError where a file has been replaced since."""
    # the header is from the process that started this one
    places, pickled = pickle.load(header)  # noqa: S301
    view = memoryview(mmap.mmap(memory, 0, access=mmap.ACCESS_COPY))
    buffers = [
        _map_file(place) if isinstance(place, FilePlace) else view[place[0] : place[0] + place[1]] for place in places
    ]
    return pickle.loads(pickled, buffers=buffers)  # noqa: S301


class _Pickler(pickle.Pickler):
    """Pickler whose arrays and dense CPU tensors go to a list of buffers."""

    def __init__(self, file: IO[bytes], buffers: list[pickle.PickleBuffer]) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffers.append)

    def reducer_override(self, obj: object) -> Any:
        if type(obj) is Tensor and obj.device.type == "cpu" and obj.layout == torch.strided:
            is_whole = obj.is_contiguous() and obj.untyped_storage().nbytes() == obj.nbytes
            if is_whole and not obj.requires_grad and obj.dtype != torch.bfloat16:
                return torch.from_numpy, (obj.numpy(),)
        return NotImplemented


def _anonymous_file() -> IO[bytes]:
    """Open memory as a file (Linux), or a file without a name."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("ranks"), "r+b")
    return tempfile.TemporaryFile()


def _mappings() -> list[tuple[int, int, int, int, str]]:
    """Return (first address, last, offset, inode, path) of the files that this process has mapped."""
    if not MAPS.is_file():
        return []
    mappings = []
    for line in MAPS.read_text(errors="surrogateescape").splitlines():
        addresses, _, offset, _, inode, *path = line.split(maxsplit=5)
        if path and path[0].startswith("/"):
            first, last = (int(address, 16) for address in addresses.split("-"))
            mappings.append((first, last, int(offset, 16), int(inode), path[0]))
    return mappings


def _file_place(view: memoryview, mappings: list[tuple[int, int, int, int, str]]) -> FilePlace | None:
    """Return where the bytes stand in a file that is still there; None for other memory."""
    address = np.frombuffer(view, np.uint8).ctypes.data
    for first, last, offset, inode, path in mappings:
        if first <= address and address + view.nbytes <= last:
            if not os.path.isfile(path) or os.stat(path).st_ino != inode:
                return None
            return FilePlace(path, inode, offset + address - first, view.nbytes)
    return None


def _map_file(place: FilePlace) -> np.ndarray:
    """Map bytes of a file."""
    if os.stat(place.path).st_ino != place.inode:
        raise ValueError(f"{place.path} was replaced while ranks were starting; run the same command again")
    return np.memmap(place.path, np.uint8, "c", place.offset, (place.size,))
