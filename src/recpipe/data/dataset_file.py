"""YAML text of a data set, proposed from the description of its log and its items file."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from recpipe.config import ConfigError
from recpipe.data.column_roles import NAMES, ItemTable

if TYPE_CHECKING:
    from recpipe.data.describe import Description

REPEATS = 0.1  # share of events with an item that their user had before, from which lists may repeat items


def dataset_file(name: str, log: Description, items: ItemTable | None, *, raw: Path) -> str:
    """Return the YAML text of a data set. raw: its folder of raw files, from which file names are relative."""
    columns = ", ".join(f"{role}: {_quoted(column)}" for role, column in log.columns.items())
    lines = [
        f"# Proposed by `recpipe dataset` from {_quoted(log.sample.path.name)}.",
        "# Every key is explained in conf/base/parameters/datasets/my_log.yml.",
        "datasets:",
        f"  {_quoted(name)}:",
        f"    title: {_quoted(name.replace('_', ' ').capitalize())}",
        "    source: files",
        "    profile: auto                 # tuned settings of the models, chosen by events and users",
        "    files:",
        f"      interactions: {_quoted(_relative(log.sample.path, raw))}",
    ]
    if items:
        lines.append(f"      items: {_quoted(_relative(items.sample.path, raw))}")
    lines += ["    options:", f"      columns: {{{columns}}}"]
    if hint := _weight_hint(log):
        lines.append(hint)
    if log.time:
        unclear = "   # or with day and month exchanged?" if log.time.ambiguous else ""
        lines.append(f"      timestamp: {_quoted(log.time.name)}{unclear}")
    else:
        lines.append("      # no time column: the order of the rows decides which events are the last")
    lines += [f"      {key}: {_quoted(value)}" for key, value in log.sample.options.items()]
    if items:
        lines += ["      items:", *(f"        {line}" for line in _items_options(items))]
    lines.append("    bad_rows: quarantine          # unusable rows go to a table with their reasons")
    lines.append("    steps:")
    if log.good:
        lines.append("      # Every rating counts as an event, bad ones too. To keep the good ones, uncomment:")
        lines.append(f"      # - {{step: min_rating, at_least: {log.good.at_least}}}   # keeps {log.good.share:.0%}")
    if log.time:
        lines.append("      - {step: duplicates, keep: first, by: [user_id, item_id, timestamp]}")
    if log.core:
        comment = f"   # keeps {log.core_share:.0%} of the events"
        lines.append(f"      - {{step: k_core, users: {log.core}, items: {log.core}}}{comment}")
    else:
        lines.append("      - {step: min_events, users: 2}   # too small for a k-core")
    lines += _content(items) if items else []
    exclude_seen = str(log.repeats < REPEATS).lower()
    reason = f"{log.repeats:.0%} of the events repeat an item of the user"
    lines.append(f"    protocol: {{exclude_seen: {exclude_seen}}}   # {reason}")
    if not log.time:
        lines.append("    baselines: [popular]          # popular_recent needs timestamps")
    return "\n".join(lines) + "\n"


def _weight_hint(log: Description) -> str | None:
    """Return a comment on a column that could weight events, None without one."""
    names = [column for column in log.sample.columns if column.lower() in NAMES["weight"].split()]
    if not names or "weight" in log.columns:
        return None
    return f"      # with `weight: {_quoted(names[0])}` in columns, events would count by it in training"


def _items_options(items: ItemTable) -> list[str]:
    """Return the lines of `options.items`."""
    columns = {"item_id": items.ids} | ({"title": items.title} if items.title else {})
    lines = [f"columns: {{{', '.join(f'{role}: {_quoted(column)}' for role, column in columns.items())}}}"]
    if items.lists:
        entries = ", ".join(f"{_quoted(column)}: {_quoted(separator)}" for column, separator in items.lists.items())
        lines.append(f"lists: {{{entries}}}   # columns with several values, and what separates them")
    return [*lines, *(f"{key}: {_quoted(value)}" for key, value in items.sample.options.items())]


def _content(items: ItemTable) -> list[str]:
    """Return the lines of the block `content`; none for items without title and texts."""
    columns = [*(["title"] if items.title else []), *items.texts]
    if not columns:
        return []
    lines = [
        "    content:                      # what text embeddings and semantic ids are made from",
        f"      text: {{template: {_quoted('. '.join(f'{{{column}}}' for column in columns))}}}",
        "      modalities: [text]",
    ]
    if items.category:
        of_list = ", of_list: first" if items.category in (items.lists or {}) else ""
        lines.append(f"      category: {{column: {_quoted(items.category)}{of_list}}}   # for measures of semantic ids")
    return lines


def _relative(path: Path, raw: Path) -> str:
    """Return the path from the raw folder for a file in it, the absolute path otherwise."""
    path, raw = path.resolve(), raw.resolve()
    return str(path.relative_to(raw) if path.is_relative_to(raw) else path)


def _quoted(value: Any) -> str:
    """Write a value for YAML on one line: plain where it is a word, otherwise in quotes with escapes.

    Raises ConfigError for bytes of a file name that are no UTF-8, which YAML cannot hold.
    """
    text = str(value)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ConfigError(f"the name {text!a} is no UTF-8: rename it")
    plain = re.fullmatch(r"[A-Za-z_][\w.-]*", text) and text.lower() not in ("yes", "no", "on", "off", "true", "false")
    if plain and text.lower() not in ("null", "y", "n"):
        return text
    quoted: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf)
    return quoted.rstrip("\n")
