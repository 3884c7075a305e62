"""Gate on the quality of semantic ids: thresholds, checks and advice, which stop a run on bad ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ALLOWED_GROUP = 20  # items that may always share an id: in a small catalogue a large share
ITEMS_PER_NEIGHBOUR = 5  # below, most items are neighbours
MIN_PURITY_ITEMS = 1000  # items with a category; below, chance alone moves purity by the threshold
LEARNED = ("rqvae", "pqvae")  # types with an encoder, which may collapse in training
CHECKS = {
    "usage": ("used codes, least used level", "at least"),
    "perplexity": ("evenness of use, most uneven level", "at least"),
    "sharing": ("items that share their codes", "at most"),
    "largest": ("items with the same codes, largest group", "at most"),
    "sharing_after": ("items that share an id after resolution", "at most"),
    "reconstruction": ("variance lost in the codes", "at most"),
    "neighbours": ("neighbours by first code, above chance", "at least"),
    "purity": ("category by first code, above chance", "at least"),
}


@dataclass(frozen=True)
class Gate:
    """Thresholds of the quality gate, as shares; None switches a check off. They stop collapses, not mediocre ids.

    ``usage`` and ``perplexity`` are relative to the codes that a level can use, at most the number of items; collisions
    are those before resolution; ``neighbours`` and ``purity`` are (value - chance) / (1 - chance) of the first code.
    """

    usage: float | None = 0.5  # at least: used codes of the least used level
    perplexity: float | None = 0.05  # at least: exp(entropy) of the most uneven level
    sharing: float | None = 0.9  # at most: items that share all codes with another
    largest: float | None = 0.1  # at most: items with the same codes; ALLOWED_GROUP always may
    sharing_after: float | None = None  # at most: items that share an id after resolution
    reconstruction: float | None = 0.9  # at most: lost variance; the mean vector loses 1
    neighbours: float | None = 0.05  # at least: nearest items with the same first code
    purity: float | None = 0.02  # at least: items of the main category of their first code

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"semantic_ids.gate.{field.name} is {value}; allowed: 0 to 1, or null for no check")


def apply_gate(
    quality: Mapping[str, Any],
    gate: Gate,
    *,
    quantizer: str = "<name>",
    kind: str | None = None,
    lent_by: str | None = None,
) -> dict[str, Any]:
    """Add ``checks`` and ``passed`` to the result of ``measure_quality``.

    Values that were not measured and thresholds of None make no check. The advice of a check names settings of the
    ``quantizer`` (its name in the conf) of type ``kind``, which another data set may have lent.
    """
    results, checks = _Results(quality, f"semantic_ids.quantizers.{quantizer}", kind, lent_by), []
    for name, (what, asks) in CHECKS.items():
        threshold, (value, advice) = getattr(gate, name), getattr(results, name)()
        if value is None or threshold is None:
            continue
        if name == "largest":
            threshold = max(threshold, min(1.0, ALLOWED_GROUP / quality["items"]))
        passed = value >= threshold if asks == "at least" else value <= threshold
        check = {"value": float(value), "threshold": float(threshold), "passed": bool(passed), "advice": advice}
        checks.append({"name": name, "what": what, "asks": asks, **check})
    return {**quality, "checks": checks, "passed": all(check["passed"] for check in checks)}


Result = tuple[float | None, str]


@dataclass(frozen=True)
class _Results:
    """Value and advice of each check in ``CHECKS``; the value is None where chance alone would decide."""

    quality: Mapping[str, Any]
    settings: str  # conf key of the quantizer's settings
    kind: str | None  # type of the quantizer, None if unknown
    lent_by: str | None

    def usage(self) -> Result:
        level, value = self._lowest_level("used")
        distinct = [1, *(prefix["distinct"] for prefix in self.quality["prefixes"])]
        if self.lent_by is not None:
            advice = (
                f"if this catalogue is a small part of what the quantizer of {self.lent_by} was fitted to, lower "
                "semantic_ids.gate.usage; if it was not fitted to this catalogue at all, fit one with quantizer_with"
            )
        elif distinct[level["level"] - 1] / self.quality["items"] > 0.9:
            advice = f"the earlier levels separate the items already, so lower {self.settings}.codes or .levels"
        else:
            advice = (
                f"keep {self.settings}.standardise on; "
                f"{self._if_learned('lower .dead_codes.every, to reset dead codes more often; ')}"
                "lower .codes if the catalogue is small or its items are alike"
            )
        return (value, f"level {level['level']} uses {level['used']:,} of its {level['size']:,} codes: {advice}")

    def perplexity(self) -> Result:
        level, value = self._lowest_level("perplexity")
        return value, (
            f"level {level['level']} is used as unevenly as if it had {level['perplexity']:.1f} codes: keep "
            f"{self.settings}.standardise on, {self._if_learned('balance the level with .sinkhorn, ')}or lower .codes"
        )

    def sharing(self) -> Result:
        before = self.quality["collisions"]["before"]
        return before["share"], (
            f"{before['sharing']:,} of {self.quality['items']:,} items have the codes of another: raise "
            f"{self.settings}.codes or .levels; items with the same text cannot differ: give content.text.template "
            "more columns"
        )

    def largest(self) -> Result:
        largest = self.quality["collisions"]["before"]["largest"]
        return largest / self.quality["items"], (
            f"{largest:,} items have the same codes: check whether their content is the same, as where a text is "
            f"missing (content.text.template); if not, the quantizer collapsed: raise {self.settings}.codes or "
            ".levels, or take another semantic_ids.seed"
        )

    def sharing_after(self) -> Result:
        after = self.quality["collisions"]["after"]
        return after["share"], (
            f"{after['sharing']:,} items share their id after resolution: set semantic_ids.collisions to extra_digit "
            "or reallocate, which leave none"
        )

    def reconstruction(self) -> Result:
        if self.quality["reconstruction"] is None:
            return None, ""
        return self.quality["reconstruction"]["relative"], (
            "the codes carry little more information than the mean of all items: keep "
            f"{self.settings}.standardise on; "
            f"{self._if_learned('train longer (.epochs, .least_steps) or with another .lr; ')}raise .codes or .levels"
        )

    def neighbours(self) -> Result:
        neighbours, items = self.quality["neighbours"], self.quality["items"]
        if not neighbours or items < ITEMS_PER_NEIGHBOUR * neighbours["k"]:
            return None, ""
        first = neighbours["by_depth"][0]
        if self.quality["levels"][0]["used"] > items / 2:
            advice = f"level 1 has a code for nearly every item, so lower {self.settings}.codes"
        else:
            learned = self.kind in (None, *LEARNED)
            reason = "has no encoder to collapse" if learned else "gives the first code the whole vector"
            other = f"use semantic_ids.quantizer=residual_kmeans, which {reason}; "
            advice = (
                f"the ids do not follow the vectors; {self._if_learned('take another semantic_ids.seed; ')}"
                f"{'' if self.kind == 'residual_kmeans' else other}change {self.settings}.codes; ids of many short "
                "levels may need semantic_ids.gate.neighbours=null"
            )
        return _above_chance(first["overlap"], first["random"]), (
            f"{first['overlap']:.1%} of the nearest neighbours share the first code, by chance "
            f"{first['random']:.1%}: {advice}"
        )

    def purity(self) -> Result:
        purity = self.quality["purity"]
        if not purity or purity["items"] < MIN_PURITY_ITEMS:
            return None, ""
        return _above_chance(purity["first_code"], purity["shuffled"]), (
            f"{purity['first_code']:.1%} of items are of the main category of their first code, by chance "
            f"{purity['shuffled']:.1%}: if the check of neighbours passes, the vectors themselves do not reflect the "
            "category: put it into content.text.template, take another encoder (embed), or set "
            "semantic_ids.gate.purity=null"
        )

    def _lowest_level(self, key: str) -> tuple[Mapping[str, Any], float]:
        """Level with the lowest share of the codes that it can use, and that share."""
        items = self.quality["items"]
        shares = [level[key] / min(level["size"], items) for level in self.quality["levels"]]
        return self.quality["levels"][shares.index(min(shares))], min(shares)

    def _if_learned(self, advice: str) -> str:
        """``advice`` for types with an encoder, nothing for others."""
        if self.kind is None:
            return f"for {' and '.join(LEARNED)} {advice}"
        return advice if self.kind in LEARNED else ""


def _above_chance(value: float, chance: float) -> float:
    """0 at chance, 1 at best; 0 where chance is 1, as with one id for all items."""
    return (value - chance) / (1 - chance) if chance < 1 else 0.0
