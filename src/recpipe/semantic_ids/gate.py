"""The quality gate: which measured numbers stop a pipeline before a model is trained on bad ids, and what to change.

The thresholds stop collapses, not mediocre ids: what passes may still be worse than another quantizer's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FEW = 20  # so many items may always share an id: in a small catalogue that is a large share of it
CROWD = 5  # times as many items as neighbours are needed for being near to mean something
JUDGEABLE = 1000  # items with a category; of fewer, chance alone moves purity by the threshold
LEARNED = ("rqvae", "pqvae")  # types with an encoder, which training may leave collapsed


@dataclass(frozen=True)
class Gate:
    """Thresholds as shares; None switches a check off.

    ``usage`` and ``perplexity`` are of the codes a level can use, which are no more than there are items; collisions
    are those before resolution; ``neighbours`` and ``purity`` are (measured - chance) / (1 - chance), first code only.
    """

    usage: float | None = 0.5  # at least: used codes of the least used level
    perplexity: float | None = 0.05  # at least: exp(entropy) of the most uneven level
    sharing: float | None = 0.9  # at most: items that share all codes with another
    largest: float | None = 0.1  # at most: items that share the same codes; FEW always may
    sharing_after: float | None = None  # at most: items that share an id after resolution
    reconstruction: float | None = 0.9  # at most: variance that is lost; the mean vector loses 1
    neighbours: float | None = 0.05  # at least: nearest items with the same first code
    purity: float | None = 0.02  # at least: items of the main category of their first code

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(
                    f"semantic_ids.gate.{field.name} is {value}; allowed: 0 to 1, or null for no check"
                )


@dataclass(frozen=True)
class _Fitted:
    """The quantizer that advice is about: its name in the conf, its type, None if unknown, and who lent it."""

    name: str
    kind: str | None
    lent_by: str | None = None

    @property
    def settings(self) -> str:
        """Where its settings are in the conf."""
        return f"semantic_ids.quantizers.{self.name}"

    def if_learned(self, advice: str) -> str:
        """``advice`` for types with an encoder, nothing for others."""
        if self.kind is None:
            return f"for {' and '.join(LEARNED)} {advice}"
        return advice if self.kind in LEARNED else ""


def judge(
    measured: Mapping[str, Any],
    gate: Gate,
    *,
    quantizer: str = "<name>",
    kind: str | None = None,
    lent_by: str | None = None,
) -> dict[str, Any]:
    """``measured`` with ``checks`` and ``passed``; what was not measured, or has no threshold, is not judged.

    ``quantizer``, its name in the conf, its type ``kind`` and the data set that lent it are for the advice: it names
    settings that are there.
    """
    fitted = _Fitted(quantizer, kind, lent_by)
    made = [
        _usage(measured, gate.usage, fitted),
        _perplexity(measured, gate.perplexity, fitted),
        _sharing(measured, gate.sharing, fitted),
        _largest(measured, gate.largest, fitted),
        _sharing_after(measured, gate.sharing_after),
        _reconstruction(measured, gate.reconstruction, fitted),
        _neighbours(measured, gate.neighbours, fitted),
        _purity(measured, gate.purity),
    ]
    checks = [check for check in made if check is not None]
    return {**measured, "checks": checks, "passed": all(check["passed"] for check in checks)}


def _check(
    name: str, what: str, value: float | None, threshold: float | None, advice: str, *, least: bool = False
) -> dict[str, Any] | None:
    if value is None or threshold is None:
        return None
    passed = value >= threshold if least else value <= threshold
    asks = "at least" if least else "at most"
    kept = {"value": float(value), "threshold": float(threshold), "passed": bool(passed), "advice": advice}
    return {"name": name, "what": what, "asks": asks, **kept}


def _usage(measured: Mapping[str, Any], threshold: float | None, fitted: _Fitted) -> dict[str, Any] | None:
    worst = min(measured["levels"], key=lambda level: level["used"] / _usable(level, measured))
    advice = f"level {worst['level']} uses {worst['used']:,} of its {worst['size']:,} codes: "
    if fitted.lent_by is not None:
        advice += (
            f"this catalogue may be a small part of what the quantizer of {fitted.lent_by} was fitted to, then lower "
            f"semantic_ids.gate.usage; if it was not fitted to this one at all, make it with quantizer_with"
        )
    elif _told_apart(measured, worst["level"] - 1) > 0.9:
        advice += (
            f"the levels before it tell the items apart already, so lower {fitted.settings}.codes or .levels"
        )
    else:
        advice += (
            f"keep {fitted.settings}.standardise on; "
            f"{fitted.if_learned('lower .dead_codes.every, to reset dead codes more often; ')}"
            "lower .codes if the catalogue is small or its items are alike"
        )
    return _check(
        "usage",
        "codes used, least used level",
        worst["used"] / _usable(worst, measured),
        threshold,
        advice,
        least=True,
    )


def _perplexity(
    measured: Mapping[str, Any], threshold: float | None, fitted: _Fitted
) -> dict[str, Any] | None:
    worst = min(measured["levels"], key=lambda level: level["perplexity"] / _usable(level, measured))
    advice = (
        f"level {worst['level']} is used as unevenly as if it had {worst['perplexity']:.1f} codes: keep "
        f"{fitted.settings}.standardise on, {fitted.if_learned('balance the level with .sinkhorn, ')}or lower .codes"
    )
    value = worst["perplexity"] / _usable(worst, measured)
    return _check("perplexity", "evenness of use, most uneven level", value, threshold, advice, least=True)


def _sharing(measured: Mapping[str, Any], threshold: float | None, fitted: _Fitted) -> dict[str, Any] | None:
    before = measured["collisions"]["before"]
    advice = (
        f"{before['sharing']:,} of {measured['items']:,} items have the codes of another: raise "
        f"{fitted.settings}.codes or .levels; items with the same text cannot be told apart: "
        "give content.text.template more columns"
    )
    return _check("sharing", "items that share their codes", before["share"], threshold, advice)


def _largest(measured: Mapping[str, Any], threshold: float | None, fitted: _Fitted) -> dict[str, Any] | None:
    items, largest = measured["items"], measured["collisions"]["before"]["largest"]
    advice = (
        f"{largest:,} items have the same codes: see whether their content is the same, as where a text is missing "
        f"(content.text.template); if not, the quantizer collapsed: raise {fitted.settings}.codes or .levels, or "
        "take another semantic_ids.seed"
    )
    allowed = None if threshold is None else max(threshold, min(1.0, FEW / items))
    return _check("largest", "items with the same codes, largest group", largest / items, allowed, advice)


def _sharing_after(measured: Mapping[str, Any], threshold: float | None) -> dict[str, Any] | None:
    after = measured["collisions"]["after"]
    advice = (
        f"{after['sharing']:,} items share their id after resolution: set semantic_ids.collisions to extra_digit or "
        "reallocate, which leave none"
    )
    return _check("sharing_after", "items that share an id in the end", after["share"], threshold, advice)


def _reconstruction(
    measured: Mapping[str, Any], threshold: float | None, fitted: _Fitted
) -> dict[str, Any] | None:
    advice = (
        f"the codes say hardly more about an item than the mean of all items: keep {fitted.settings}.standardise on; "
        f"{fitted.if_learned('train longer (.epochs, .least_steps) or with another .lr; ')}raise .codes or .levels"
    )
    lost = measured["reconstruction"]["relative"]
    return _check("reconstruction", "variance lost in the codes", lost, threshold, advice)


def _neighbours(
    measured: Mapping[str, Any], threshold: float | None, fitted: _Fitted
) -> dict[str, Any] | None:
    found = measured["neighbours"]
    if not found or measured["items"] < CROWD * found["k"]:
        return None
    first = found["by_depth"][0]
    advice = f"{first['overlap']:.1%} of the nearest neighbours share the first code, by chance {first['random']:.1%}: "
    if measured["levels"][0]["used"] > measured["items"] / 2:
        advice += f"level 1 has a code for nearly every item, so lower {fitted.settings}.codes"
    else:
        advice += f"the ids do not follow the vectors; {_elsewhere(fitted)}"
    value = _gain(first["overlap"], first["random"])
    return _check(
        "neighbours", "neighbours by first code, above chance", value, threshold, advice, least=True
    )


def _purity(measured: Mapping[str, Any], threshold: float | None) -> dict[str, Any] | None:
    purity = measured["purity"]
    if not purity or purity["items"] < JUDGEABLE:
        return None
    advice = (
        f"{purity['first_code']:.1%} of items are of the main category of their first code, by chance "
        f"{purity['shuffled']:.1%}: if the check of neighbours passes, the vectors themselves do not know the "
        "category: put it into content.text.template, take another encoder (embed), or set "
        "semantic_ids.gate.purity=null"
    )
    value = _gain(purity["first_code"], purity["shuffled"])
    return _check("purity", "category by first code, above chance", value, threshold, advice, least=True)


def _elsewhere(fitted: _Fitted) -> str:
    """What may help where the codes say nothing of the vectors; a fit of the same seed would give the same."""
    why = (
        "has no encoder to collapse"
        if fitted.kind in (None, *LEARNED)
        else "gives the first code the whole vector"
    )
    another = f"use semantic_ids.quantizer=residual_kmeans, which {why}; "
    return (
        f"{fitted.if_learned('take another semantic_ids.seed; ')}{'' if fitted.kind == 'residual_kmeans' else another}"
        f"change {fitted.settings}.codes; ids of many short levels may need semantic_ids.gate.neighbours=null"
    )


def _usable(level: Mapping[str, Any], measured: Mapping[str, Any]) -> int:
    return min(level["size"], measured["items"])


def _told_apart(measured: Mapping[str, Any], depth: int) -> float:
    """Distinct prefixes of ``depth`` codes as a share of the items."""
    distinct = [1, *(prefix["distinct"] for prefix in measured["prefixes"])]
    return distinct[depth] / measured["items"]


def _gain(value: float, chance: float) -> float:
    """0 at chance, 1 at the best there is; 0 where chance is all there is, as with one id for all items."""
    return (value - chance) / (1 - chance) if chance < 1 else 0.0
