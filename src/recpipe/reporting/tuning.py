"""Section of the report on tuning: a part per tuned model, with figures and the best trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

from recpipe.reporting.figures import CAPTIONS, Table
from recpipe.reporting.figures.tuning import setting_text, tuning_figures
from recpipe.reporting.formatting import MISSING, decimals, duration, metric_title

REQUIRED = ("study", "model", "seed", "protocol", "metric", "trials", "best", "importance", "search_space")
BEST = 5  # trials in the table


@dataclass(frozen=True)
class TunedPart:
    """One study: what it found, its figures by their names on the page, its best trials, the final command."""

    title: str
    lead: str
    figures: tuple[str, ...]
    table: Table
    command: str


@dataclass(frozen=True)
class TuningSection:
    """All parts, with figures and captions by name; messages of unusable files."""

    parts: list[TunedPart] = field(default_factory=list)
    figures: dict[str, go.Figure] = field(default_factory=dict)
    captions: dict[str, dict[str, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def tuning_section(tunings: Mapping[str, Callable[[], Any]], *, protocol: str) -> TuningSection:
    """Build the section from results of the pipeline tune under ``protocol``; ``tunings`` are loaders by run."""
    section = TuningSection()
    for run, load in sorted(tunings.items()):
        try:
            result = load()
        except (OSError, ValueError) as error:
            message = str(error)
            section.problems.append(message if run in message else f"the tuning of {run} cannot be read: {message}")
            continue
        if not isinstance(result, dict) or any(key not in result for key in REQUIRED):
            section.problems.append(f"the tuning of {run} is of another version: run the pipeline tune again")
        elif result["protocol"] == protocol and result["best"] is not None:
            _add_part(section, run, result)
    return section


def _add_part(section: TuningSection, run: str, result: Mapping[str, Any]) -> None:
    """Add one study to ``section``."""
    label = f"{result['model']}, seed {result['seed']}"
    names: list[str] = []
    for kind, drawing in tuning_figures(result).items():
        name = f"tuning_{kind}_{''.join(sign if sign.isalnum() else '_' for sign in run)}"
        name += f"_{len(section.parts)}" if name in section.figures else ""  # of a model whose name differs by a sign
        caption = CAPTIONS[f"tuning_{kind}"]
        section.figures[name], names = drawing, [*names, name]
        section.captions[name] = {**caption, "title": f"{caption['title']}: {label}"}
    command = str(result.get("command", ""))
    section.parts.append(TunedPart(label, _lead(result), tuple(names), _table(result), command))


def _lead(result: Mapping[str, Any]) -> str:
    """What the study found, in sentences."""
    trials, metric = result["trials"], metric_title(result["metric"])
    states = Counter(row["state"] for row in trials)
    best = next(row for row in trials if row["number"] == result["best"])
    pruned = f", {states['pruned']} of them pruned" if states["pruned"] else ""
    seconds = sum(row["seconds"] or 0 for row in trials)
    text = f"Study {result['study']}: {len(trials)} trials{pruned}, {duration(seconds)}. "
    value = f"with a validation {metric} of {decimals(best['value'])}"
    if best.get("configured"):
        return f"{text}The configuration as it stands is the best, {value}."
    before = result.get("configured")
    against = "" if before is None else f", against {decimals(before)} as configured"
    return f"{text}Trial {best['number']} is the best, {value}{against}."


def _table(result: Mapping[str, Any]) -> Table:
    """The best trials with their settings; those of the Pareto front of two objectives are marked."""
    complete = [row for row in result["trials"] if row["state"] == "complete"]
    rows = sorted(complete, key=lambda row: (-row["value"], row["number"]))[:BEST]
    front, settings = result.get("pareto") or [], list(result["search_space"])
    numbers = {row["number"] for row in rows}
    rows += [row for row in complete if row["number"] in front and row["number"] not in numbers]
    head = ["trial", f"validation {metric_title(result['metric'])}", *settings, "epochs", "training"]
    cells = []
    for row in rows:
        mark = " (as configured)" if row.get("configured") else ""
        values = [setting_text(row["settings"].get(name, MISSING)) for name in settings]
        epochs, seconds = row.get("epochs"), row.get("train_seconds")
        line = [f"{row['number']}{mark}", decimals(row["value"]), *values, MISSING if not epochs else str(epochs)]
        line.append(duration(seconds))
        if front:
            line += [duration(row.get("inference_seconds")), "yes" if row["number"] in front else ""]
        cells.append(line)
    return ([*head, "ranking of the fold", "on the Pareto front"] if front else head), cells
