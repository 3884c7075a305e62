"""Search for bundles on disk: the newest one of a run, of a model, or of all models of a data set."""

from __future__ import annotations

from pathlib import Path

from recpipe.config.run_config import BUNDLES
from recpipe.data.atomic import latest_version, version_names

CONFIG = "config.json"  # file that makes a folder a bundle
KINDS = BUNDLES["newest"]
MODELS, LOG = "06_models", "03_primary"  # layers of a data folder, as in ``DataPaths``


def newest_bundle(path: Path | str, kinds: tuple[str, ...] = KINDS) -> Path:
    """Return the newest bundle in ``path``: a bundle, a folder of a seed, or that of a model, over all its seeds.

    Versions are names of time, ``2026-01-31T12.00.00.000Z``. ``kinds``: measured bundles, production bundles or both.
    Raises ValueError where there is none, with the command that makes one.
    """
    path = Path(path)
    if (path / CONFIG).is_file():
        return path
    versions = [version for folder in _version_folders(path, kinds) if (version := latest_version(folder)) is not None]
    if not versions:
        reason = f"there is no {' and no '.join(kinds)} in it"
        if not path.is_dir():
            trained = sorted(folder.name for folder in path.parent.glob("*/") if path.parent.parent.name == MODELS)
            reason = "there is no such folder" + (f", only {', '.join(trained)}" if trained else "")
        raise ValueError(
            f"no bundle in {path}: {reason}; train one with `kedro run --pipelines=train --params {_params(path)}`"
        )
    return max(versions, key=lambda version: version.parent.name)


def bundle_versions(path: Path | str, kinds: tuple[str, ...] = KINDS) -> list[Path]:
    """Return all bundles of ``path``, newest first, to fall back to where the newest is damaged; see newest_bundle."""
    newest = newest_bundle(path, kinds)
    if newest == Path(path):
        return [newest]
    others = [
        folder / name / folder.name for folder in _version_folders(Path(path), kinds) for name in version_names(folder)
    ]
    older = [version for version in others if version.parent.name < newest.parent.name]
    return [newest, *sorted(older, key=lambda version: version.parent.name, reverse=True)]


def version_of(bundle: Path) -> str:
    """Return the version of a bundle's folder, its time; the name of a folder outside a run."""
    return bundle.parent.name if bundle.name in KINDS else bundle.name


def models_folder(bundle: Path) -> Path | None:
    """Return <data>/06_models/<dataset>, which a bundle of a run lies in; None for a bundle outside a data folder."""
    parents = bundle.resolve().parents  # <data>/06_models/<dataset>/<model>/seed_<n>/<kind>/<version>/<kind>
    return parents[4] if len(parents) > 6 and parents[5].name == MODELS else None


def log_folder(bundle: Path) -> Path | None:
    """Return <data>/03_primary/<dataset>, the ingested log of a bundle; None for a bundle outside a data folder."""
    models = models_folder(bundle)
    return None if models is None else models.parents[1] / LOG / models.name


def _params(path: Path) -> str:
    """Return the parameters of the training whose bundle would lie in ``path``."""
    parts = path.absolute().parts
    names = [] if MODELS not in parts else list(parts[len(parts) - parts[::-1].index(MODELS) :])
    dataset, model, seed = [*names, "", "", ""][:3]
    params = {"dataset": dataset, "model": model or "<name>", "seed": seed.removeprefix("seed_")}
    return ",".join(f"{key}={value}" for key, value in params.items() if value)


def _version_folders(path: Path, kinds: tuple[str, ...]) -> list[Path]:
    seeds = [path, *sorted(path.glob("seed_*/"))]
    return [folder for seed in seeds for kind in kinds if (folder := seed / kind).is_dir()]
