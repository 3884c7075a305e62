"""Conf file of a tuned model: ``models: <model>_tuned``, which extends the model on the data sets it was tuned on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from recpipe.config import ConfigError, RunConfig, read_yaml
from recpipe.data.atomic import atomic_file
from recpipe.training.tuning.results import best_settings, conf_block
from recpipe.training.variants import with_overrides

SUFFIX = "_tuned"
MARK = "# Written by `kedro run --pipeline=tune`, which writes it again: copy it under another name to change it."
ABOUT = re.compile(r"^      # (\S+): (.*)$")  # a data set, and where its settings are from


@dataclass(frozen=True)
class TunedModel:
    """Best settings of a study: those that differ from the ``parent`` on ``dataset`` as a nested ``block``."""

    parent: str
    dataset: str
    block: Mapping[str, Any]
    about: str

    @property
    def name(self) -> str:
        """Name of the model in the conf."""
        return f"{self.parent}{SUFFIX}"

    @classmethod
    def of(cls, result: Mapping[str, Any], config: RunConfig, parent: RunConfig) -> TunedModel:
        """Take the best completed trial of a study, by the metric, also of two objectives.

        config: the model that was tuned, with overrides of the command line. parent: the same model in the files.
        """
        best = next(row for row in result["trials"] if row["number"] == result["best"])
        value, configured = f"{best['value']:.4f}", result["configured"]
        before = "" if configured is None else f" ({configured:.4f} as configured)"
        about = (
            f"validation {result['metric']} {value}{before}, trial {best['number']} of {len(result['trials'])} of the "
            f"study {result['study']}, {result['finished'][:10]}"
        )
        block = conf_block(parent, with_overrides(config, best_settings(result)))
        return cls(config.name, config.dataset, block, about)


def check_writable(path: Path) -> None:
    """Raise ConfigError for a file that people wrote."""
    if path.is_file() and path.read_text(encoding="utf-8").partition("\n")[0].rstrip() != MARK:
        raise ConfigError(
            f"{path} was not written by the pipeline tune, which would overwrite it: rename the file, and the model "
            "in it"
        )


def write(path: Path, model: TunedModel) -> None:
    """Write the model; settings of other data sets in the file stay. Raises ConfigError as ``check_writable``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):  # a command on another data set may end at the same time
        _write(path, model)


def _write(path: Path, model: TunedModel) -> None:
    check_writable(path)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    blocks: dict[str, Any] = {}
    if text:
        earlier = (read_yaml(text) or {}).get("models", {}).get(model.name) or {}
        blocks = dict(earlier.get("datasets") or {})
    lines = (ABOUT.match(line) for line in text.splitlines())
    about = {match[1]: match[2] for match in lines if match} | {model.dataset: model.about}
    blocks[model.dataset] = dict(model.block)
    parts = [MARK, "models:", f"  {model.name}:", f"    extends: {model.parent}", "    datasets:"]
    for dataset, block in sorted(blocks.items()):
        if dataset in about:
            parts.append(f"      # {dataset}: {about[dataset]}")
        entry = yaml.safe_dump({dataset: block}, sort_keys=False, allow_unicode=True, width=100)
        parts += [f"      {line}" for line in entry.splitlines()]
    with atomic_file(path, digest=False) as part:
        part.write_text("\n".join(parts) + "\n", encoding="utf-8")
