"""Quantizers, ids and vectors of earlier runs and of other data sets, for reuse."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from recpipe.config import DataPaths, split_names
from recpipe.content.embeddings import Embeddings
from recpipe.semantic_ids.ids import SemanticIds
from recpipe.semantic_ids.quantizer import Quantizer, load

if TYPE_CHECKING:
    from recpipe.config.schema import SemanticIdsConfig

log = logging.getLogger(__name__)
T = TypeVar("T")
QUANTIZER, IDS = "quantizer", "semantic_ids.parquet"  # in the folder of a kind of ids


class UnreadableError(ValueError):
    """An earlier quantizer or earlier ids on disk cannot be read."""


@dataclass(eq=False)
class EarlierIds:
    """Results that can be reused for one kind of ids, read at their first use; None for those that do not exist.

    ``folder`` has the quantizer and the ids of an earlier run. ``lender`` is the data set of ``quantizer_from``, whose
    quantizer is in ``lent_folder``. ``others``: files with the embeddings of the data sets of ``quantizer_with``, by
    name. A file that cannot be read raises UnreadableError.
    """

    folder: Path | None = None
    lender: str | None = None
    lent_folder: Path | None = None
    others: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: DataPaths, config: SemanticIdsConfig) -> EarlierIds:
        """Paths in the data folder, as ``config`` names data sets.

        Raises ValueError for a bad name, for several data sets in ``quantizer_from``, and where ``quantizer_with``
        names the data set itself.
        """
        lenders, others = split_names(config.quantizer_from), split_names(config.quantizer_with)
        for name in (*lenders, *others):
            if name in ("", ".", "..") or Path(name).name != name:
                raise ValueError(f"{name!r} is no name of a data set")
        if paths.dataset in others:
            raise ValueError(f"quantizer_with={paths.dataset} is the data set itself; name others")
        if len(lenders) > 1:
            raise ValueError(f"quantizer_from={config.quantizer_from}: name one data set")
        embeddings = f"{config.kind.removesuffix('_parts')}_embeddings.parquet"
        return cls(
            folder=paths.ids(config.kind),
            lender=lenders[0] if lenders else None,
            lent_folder=paths.of(lenders[0]).ids(config.kind) if lenders else None,
            others={name: paths.of(name).features / embeddings for name in others},
        )

    @cached_property
    def quantizer(self) -> Quantizer | None:
        """The quantizer of an earlier run."""
        return _read(load, self.folder, QUANTIZER)

    @cached_property
    def ids(self) -> SemanticIds | None:
        """The ids of an earlier run."""
        return _read(SemanticIds.read, self.folder, IDS)

    @cached_property
    def lent_quantizer(self) -> Quantizer | None:
        """The quantizer of ``lender``."""
        return _read(load, self.lent_folder, QUANTIZER)

    @cached_property
    def other_embeddings(self) -> dict[str, Embeddings]:
        """Vectors of the other data sets. Raises ValueError for missing ones, with the command that makes them."""
        for name, path in self.others.items():
            if not path.is_file():
                raise ValueError(
                    f"{name} has no {path.name}; run `kedro run --pipelines=ingest,embed --params dataset={name}`"
                )
        return {name: Embeddings.read(path) for name, path in self.others.items()}


def unless_damaged(read: Callable[[], T | None], *, refit: bool) -> T | None:
    """Return ``read()``; for a damaged file None if ``refit`` is set, otherwise raise UnreadableError."""
    try:
        return read()
    except UnreadableError as error:
        if not refit:
            raise
        log.warning("made anew: %s", error)
        return None


def _read(read: Callable[[Path], T], folder: Path | None, name: str) -> T | None:
    if folder is None or not (path := folder / name).exists():
        return None
    try:
        return read(path)
    except (ValueError, OSError) as error:
        raise UnreadableError(
            f"{path} cannot be read ({error}). Put a copy back, or make new ids for all items: add "
            "`--params semantic_ids.refit=true`"
        ) from error
