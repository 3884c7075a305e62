"""Self-contained copy of the code that serves a bundle, tried in a fresh interpreter, and the packages it imports.

A bundle is served where neither this repository nor Kedro is installed. So the library is copied without its shell,
and before anything is published a new interpreter answers a request with nothing but this copy and the bundle.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import recpipe

LIBRARY = (
    "accelerate", "config", "content", "data", "decoding", "evaluation", "layers", "models", "semantic_ids", "serving",
    "training",
)  # fmt: skip
MODULES = ("__init__.py", "progress.py")
TIMEOUT = 600  # seconds
# Runs with -I, so that neither the working directory nor PYTHONPATH leads back to the repository.
TRIAL = """
import ast, json, sys
from importlib.metadata import packages_distributions
from pathlib import Path
code, bundle, answer, request = sys.argv[1:]
sys.path.insert(0, code)
import recpipe
if not Path(recpipe.__file__).is_relative_to(code):
    sys.exit(f"recpipe was imported from {recpipe.__file__}, not from the copy")
model = recpipe.load_bundle(bundle)
request = json.loads(request)
table = model.recommend(request["histories"], k=request["k"])
import pyarrow.parquet
pyarrow.parquet.write_table(table, answer)
names = set()
for name, module in list(sys.modules.items()):
    if name.split(".")[0] == "recpipe" and getattr(module, "__file__", None):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
imported = (names & set(sys.modules)) - {"recpipe"} - set(sys.stdlib_module_names)
distributions = packages_distributions()
print(json.dumps(sorted({distributions[name][0] for name in imported})))
"""


@dataclass(frozen=True)
class Trial:
    """Answer of a bundle in a fresh interpreter, and the distributions that its code imported for it."""

    recommendations: pa.Table
    distributions: tuple[str, ...]

    def requirements(self, *others: str) -> list[str]:
        """Pins of these distributions and ``others``, at the installed versions."""
        return sorted(pinned(name) for name in {*self.distributions, *others})


def copy_code(folder: Path) -> Path:
    """Copy the Python files of the library below ``folder``; return the folder of the package."""
    source, target = Path(recpipe.__file__).parent, folder / "recpipe"
    files = [source / name for name in MODULES]
    files += [path for name in LIBRARY for path in sorted((source / name).rglob("*.py"))]
    for path in files:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return target


def try_bundle(code: Path, bundle: Path, histories: Mapping[str, Sequence[str]], k: int, folder: Path) -> Trial:
    """Recommend ``k`` items from ``histories`` in a new interpreter that has only ``code``, a folder of `copy_code`.

    ``folder`` is for temporary files. Raises ValueError with the last line of its error where it fails.
    """
    answer, request = folder / "answer.parquet", json.dumps({"histories": histories, "k": k})
    command = [sys.executable, "-I", "-c", TRIAL, *map(str, (code.parent, bundle, answer)), request]
    try:
        process = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{bundle} gave no answer in {TIMEOUT} s in a fresh interpreter; nothing is saved") from error
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"{bundle} cannot be served outside this project ({reason}); nothing is saved")
    distributions: list[Any] = json.loads(process.stdout.splitlines()[-1])
    return Trial(pq.read_table(answer), tuple(distributions))


def pinned(distribution: str) -> str:
    """Pin a distribution at its installed version, without the label of a local build such as ``+cpu``."""
    return f"{distribution}=={version(distribution).partition('+')[0]}"
