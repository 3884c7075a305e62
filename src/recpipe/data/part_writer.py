"""Writer of one part of a split, some users after the other. U users, N events."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from recpipe.data.sequence_files import TARGETS, SequenceWriter
from recpipe.data.sequences import Fold, Sequences

NO_EVENTS = np.zeros(0, np.int32)


class PartWriter:
    """Writer of a file of ``Sequences.read`` or ``Fold.read``; only ids, offsets and profiles stay in memory."""

    def __init__(self, path: Path, columns: Sequence[str], *, is_fold: bool) -> None:
        """Open a writer of event columns such as items; a fold has them twice, for histories and targets."""
        targets = [f"{TARGETS}{name}" for name in columns] if is_fold else []
        self._columns, self._writer = columns, SequenceWriter(path, [*columns, *targets])
        self._parts: list[Sequences] = []  # users without events
        self._lengths: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])  # of events, or histories; of targets

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    def append(self, part: Sequences | Fold) -> None:
        """Append users with their events."""
        of_prefix = {"": part} if isinstance(part, Sequences) else {"": part.histories, TARGETS: part.targets}
        values: dict[str, np.ndarray] = {}
        for (prefix, data), lengths in zip(of_prefix.items(), self._lengths, strict=False):
            values |= {f"{prefix}{name}": getattr(data, name) for name in self._columns}
            lengths.append(data.lengths)
        self._writer.append(**values)
        users, none = of_prefix[""], np.zeros(len(part) + 1, np.int64)
        self._parts.append(Sequences(users.users, NO_EVENTS, None, none, profiles=users.profiles))

    def close(self) -> None:
        """Complete the file, which appears when the ``with`` block ends."""
        users = Sequences.concatenate(self._parts)
        offsets, targets = (np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64) for lengths in self._lengths)
        self._writer.close(users.users, offsets, target_offsets=targets, profiles=users.profiles)
