"""Command `recpipe new`: a project folder with configuration, notebooks and a small data set.

recpipe new shop       creates the folder; `kedro run` works in it
recpipe new .          in an empty folder, or one with only a virtual environment
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shlex
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

from recpipe import __version__

TEMPLATE = Path(__file__).parent / "project_template"
SHARED = ("conf/base", "conf/test", "conf/spark", "conf/logging.yml", "notebooks")  # kept once, in the repository
RENAMED = {"gitignore": ".gitignore", "telemetry": ".telemetry"}  # names with a dot would act in the repository
SAMPLE = "data/01_raw/online_retail/transactions.parquet"
DATASET = "conf/base/parameters/datasets/online_retail.yml"
PATTERN_CHARACTERS = frozenset("{}[]*?")  # of Kedro's paths
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def main(arguments: list[str] | None = None) -> int:
    """Create the folder and print the next commands; return 2 where it cannot be created."""
    options = _parser().parse_args(arguments)
    try:
        folder = create_project(options.folder)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    enter = [] if folder == Path.cwd() else [f"  cd {shlex.quote(str(options.folder))}"]
    steps = [
        "  kedro run        # trains and compares three models, a few minutes",
        "  recpipe serve    # the explorer, on http://127.0.0.1:8000",
    ]
    print("\n".join([f"Created {folder} for recpipe {__version__}. Next:", "", *enter, *steps, ""]))
    print("README.md in the folder says what else there is, and how to use your own log.")
    return 0


def create_project(folder: Path) -> Path:
    """Create a project in ``folder`` and return its absolute path.

    Raises ValueError for a folder with files in it, and for a path that Kedro cannot work in.
    """
    folder = folder.resolve()
    if characters := PATTERN_CHARACTERS & set(str(folder)):
        raise ValueError(
            f"{folder} has {' '.join(sorted(characters))} in it, which Kedro reads as a pattern: choose another name"
        )
    if UNPRINTABLE.search(str(folder)):
        raise ValueError(f"{str(folder)!a} has a line break or another control character in it: choose another name")
    if file := next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None):
        raise ValueError(f"{file} is a file: choose another name")
    if folder.is_dir() and (names := sorted(entry.name for entry in folder.iterdir() if not _may_stay(entry))):
        raise ValueError(f"{folder} is not empty, it has {', '.join(names[:3])}: choose a new folder")
    shutil.copytree(TEMPLATE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("conf", "notebooks"))
    for name, new_name in RENAMED.items():
        (folder / name).rename(folder / new_name)
    copy_shared(TEMPLATE if (TEMPLATE / "conf").is_dir() else TEMPLATE.parents[2], folder)
    (folder / "conf/local").mkdir()
    (folder / "conf/local/.gitkeep").touch()
    toml_text = folder.name.replace("\\", "\\\\").replace('"', '\\"')
    for filled, name in (("pyproject.toml", toml_text), ("README.md", folder.name)):
        _fill_in(folder / filled, name)
    _describe_sample(folder)
    return folder


def copy_shared(source: Path, target: Path) -> None:
    """Copy what stands once in the repository: no other environment of ``conf``, and no credentials.

    The build copies it into the wheel; an editable installation reads it from the repository.
    """
    ignore = shutil.ignore_patterns("credentials*", "__pycache__", ".*")
    for name in SHARED:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=ignore)
        else:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, target / name)


def _may_stay(entry: Path) -> bool:
    """Whether a project can be created beside an entry of the folder: a hidden folder or a virtual environment."""
    return entry.is_dir() and (entry.name.startswith(".") or (entry / "pyvenv.cfg").is_file())


def _fill_in(file: Path, name: str) -> None:
    """Replace the placeholders of a file."""
    values = {"{name}": name, "{version}": __version__, "{kedro_version}": version("kedro")}
    text = file.read_text(encoding="utf-8")
    for placeholder, value in values.items():
        text = text.replace(placeholder, value)
    file.write_text(text, encoding="utf-8")


def _describe_sample(folder: Path) -> None:
    """Write the checksum and the title of the sample into the file of its data set."""
    digest = hashlib.sha256((folder / SAMPLE).read_bytes()).hexdigest()
    file = folder / DATASET
    text = file.read_text(encoding="utf-8")
    text, count = re.subn(r"checksum: sha256:[0-9a-f]{64}", f"checksum: sha256:{digest}", text)
    text, titles = re.subn(r"(?m)^( *title: .*)$", r"\1, a sample of every fifth customer", text)
    if count != 1 or titles != 1:
        raise ValueError(f"{file} has {count} checksums and {titles} titles; the package is damaged, install it again")
    file.write_text(text, encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "recpipe new", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder to create")
    return parser


if __name__ == "__main__":
    sys.exit(main())
