"""Files of artefacts in tests: names without digests, damage by flipped bits, files whose digest is gone."""

from __future__ import annotations

import random
from pathlib import Path

from recpipe.data.digests import MANIFEST, digest_path


def names(folder: Path) -> list[str]:
    """Names of all entries of a folder, hidden ones too, without digests and manifest."""
    entries = (path.name for path in folder.iterdir())
    return sorted(name for name in entries if not name.endswith(".sha256") and name != MANIFEST)


def forget_digest(path: Path) -> None:
    """Delete the digest of a file or folder, so that its content alone decides."""
    (path / MANIFEST if path.is_dir() else digest_path(path)).unlink()


def flip_bit(path: Path, seed: int) -> None:
    """Flip one bit of a file, at a place that the seed decides."""
    content = bytearray(path.read_bytes())
    place = random.Random(seed).randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
