"""Semantic ids on the page and in the summary: what they are made of, what the gate said, two figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recpipe.reporting.figures.semantic_ids import quality_rows
from recpipe.reporting.formatting import codes_per_level, count, percent

NAMES = {
    "text": "text",
    "image": "images",
    "text_image": "text and images",
    "text_parts": "parts of text vectors",
}
POLICIES = {
    "extra_digit": "one more digit",
    "reallocate": "the nearest free code",
    "sinkhorn": "balanced re-assignment",
    "keep": "left as they are",
}


@dataclass(frozen=True)
class Section:
    """One kind of semantic ids."""

    name: str  # text_ids: sets its figures apart from those of others
    title: str
    passed: bool
    facts: list[tuple[str, str]]
    checks: list[dict[str, Any]]
    figures: Mapping[str, Any] = field(default_factory=dict)  # plotly figures by the keys of captions.IDS
    line: str = ""  # for the terminal


def section(quality: Mapping[str, Any], figures: Mapping[str, Any]) -> Section:
    """From quality.json, as the pipeline semantic_ids leaves it, and its figures."""
    modality = str(quality["modality"])
    title = f"Semantic ids from {NAMES.get(modality, modality)}"
    return Section(
        f"{modality}_ids",
        title,
        bool(quality["passed"]),
        _facts(quality),
        _checks(quality),
        figures,
        _line(quality),
    )


def _facts(quality: Mapping[str, Any]) -> list[tuple[str, str]]:
    levels, before = quality["levels"], quality["collisions"]["before"]
    after, purity = quality["collisions"]["after"], quality.get("purity") or {}
    overlap = (quality["neighbours"] or {}).get("by_depth") or [{}]
    facts = [
        ("items with an id", count(quality["items"])),
        ("items without content, so without an id", count(quality["without_content"])),
        ("of them came after the codes were fitted", count(quality["added"])),
        ("codes per level", codes_per_level(quality["sizes"])),
        ("of the codes of the least used level are used", percent(min(level["usage"] for level in levels))),
        ("distinct ids before collisions were resolved", count(before["distinct"])),
        (
            "items shared one then, at most with",
            f"{count(before['sharing'])}, {count(before['largest'] - 1)}",
        ),
        ("collisions were resolved by", POLICIES.get(quality["policy"], quality["policy"])),
        ("items share one now", count(after["sharing"])),
        (
            "of the vectors\u2019 variance is lost in the codes",
            percent(quality["reconstruction"]["relative"]),
        ),
        (
            "of an item\u2019s nearest neighbours share its first code",
            _beside(overlap[0], "overlap", "random"),
        ),
        ("of items are of the main category of their first code", _beside(purity, "first_code", "shuffled")),
    ]
    return [(name, value) for name, value in facts if value]


def _beside(values: Mapping[str, Any], name: str, chance: str) -> str:
    """`31 %, by chance 8 %`, nothing where it was not measured."""
    if values.get(name) is None:
        return ""
    return f"{percent(values[name])}, by chance {percent(values[chance])}"


def _checks(quality: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "value": value,
            "threshold": threshold,
            "passed": passed,
            "advice": str(check["advice"]),
        }
        for (name, value, threshold, passed), check in zip(
            quality_rows(quality), quality["checks"], strict=True
        )
    ]


def _line(quality: Mapping[str, Any]) -> str:
    used = percent(min(level["usage"] for level in quality["levels"]))
    verdict = "passed the gate" if quality["passed"] else "did NOT pass the gate"
    sizes = codes_per_level(quality["sizes"])
    return (
        f"{quality['modality']}: {count(quality['items'])} items, {sizes} codes; {verdict}\n"
        f"   {used} of the codes of the least used level are used, "
        f"{count(quality['collisions']['before']['distinct'])} distinct ids before collisions were resolved"
    )
