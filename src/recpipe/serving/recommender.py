"""Where a run keeps its bundle, and what it knows by which title."""

from __future__ import annotations

from pathlib import Path

from recpipe.training.bundle import CONFIG, Bundle


def bundle_folder(run: Path) -> Path:
    """The bundle in ``run``: itself, or the newest version below ``bundle``. Raises ValueError where there is none."""
    if (run / CONFIG).is_file():
        return run
    versions = sorted(folder.parent for folder in (run / "bundle").glob(f"*/*/{CONFIG}"))
    if not versions:
        raise ValueError(
            f"there is no bundle in {run}; train one with `kedro run --pipelines=train --params model=<name>`"
        )
    return versions[-1]


def items_titled(bundle: Bundle, text: str) -> list[tuple[str, str]]:
    """Ids and titles of the items whose title contains ``text``, in any case; the most frequent in training first."""
    wanted = text.casefold()
    rows = zip(bundle.train_events.tolist(), bundle.vocabulary.ids.tolist(), bundle.titles, strict=True)
    found = [(count, item, title) for count, item, title in rows if title and wanted in title.casefold()]
    return [(item, title) for _, item, title in sorted(found, key=lambda row: (-row[0], row[1]))]
