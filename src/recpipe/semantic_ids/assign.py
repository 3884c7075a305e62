"""Ids for a catalogue: all at once, or for new items around the ids that were given earlier.

Shape letters: N items, D width, L levels.

One quantizer for several data sets, so that a model trained on one can go on with another: as MQL4GRec pretrains.

A quantizer says what it was fitted to; vectors fit it if one encoder made them. Texts may be of another template.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recpipe.content.embeddings import Embeddings, text_space
from recpipe.semantic_ids.collisions import Resolved, check_policy, resolve
from recpipe.semantic_ids.ids import SemanticIds
from recpipe.semantic_ids.quantizer import COMMAND, Quantizer, build_quantizer

log = logging.getLogger(__name__)


def assign(
    embeddings: Embeddings,
    quantizer: Quantizer,
    *,
    policy: str = "extra_digit",
    extra_codes: int = 256,
    earlier: SemanticIds | None = None,
) -> SemanticIds:
    """Ids for all items with content.

    With ``earlier`` its rows come first, as they are: also those of items that left the catalogue, lost their content
    or have another content now (``about["counts"]["changed"]``). Items that are not among them are appended, with
    codes that leave those untouched. Raises ValueError for a quantizer of another vector space, for ``earlier`` ids
    of another quantizer, policy or sizes, and where the ids cannot hold the items.
    """
    check_policy(policy)
    _check_space(embeddings, quantizer)
    if earlier is not None:
        _check_earlier(earlier, quantizer, policy, extra_codes)
    new = np.flatnonzero(embeddings.present & (_known(embeddings, earlier) < 0))
    x_ND = embeddings.vectors[new]
    quantized = quantizer.encode(x_ND) if len(new) else np.zeros((0, len(quantizer.sizes)), np.int32)
    resolved = resolve(
        policy,
        quantized,
        quantizer.sizes,
        lambda rows, codes, level: quantizer.level_distances(x_ND[rows], codes, level),
        extra_codes=extra_codes,
        taken=None if earlier is None else earlier.codes,
    )
    counts = {**_counts(embeddings, earlier, len(new)), **resolved.about}
    log.info("semantic ids: %s", ", ".join(f"{n} {what}" for what, n in counts.items()))
    about = {
        "quantizer": quantizer.hash,
        "space": embeddings.space,
        "embeddings": embeddings.hash,
        "policy": policy,
        "modality": quantizer.about.get("modality", embeddings.about.get("modality")),
        "counts": counts,
    }
    return _extended(earlier, embeddings, new, quantized, resolved, about)


def reusable(
    quantizer: Quantizer,
    embeddings: Embeddings,
    block: Mapping[str, Any],
    seed: int,
    *,
    others: Sequence[str] = (),
) -> str | None:
    """None if ``quantizer`` is what fitting the conf ``block`` (``type`` and settings) would aim at, else why not.

    ``others`` are data sets that it must have been fitted to as well; none: whatever it was fitted to.
    """
    settings = {key: value for key, value in block.items() if key != "type"}
    asked = build_quantizer(block["type"], settings)
    if asked.type != quantizer.type:
        return f"type is {asked.type}, the fitted one is {quantizer.type}"
    differing = [key for key, value in asked.settings.items() if quantizer.settings.get(key) != value]
    if differing:
        changed = (f"{key} is {asked.settings[key]}, was {quantizer.settings.get(key)}" for key in differing)
        return f"other settings: {'; '.join(changed)}"
    if (seeded := quantizer.about.get("seed")) != seed:
        return f"seed is {seed}, was {seeded}"
    if others and (fitted_to := sorted(quantizer.about.get("with") or {})) != sorted(others):
        fitted_with = ", ".join(fitted_to) or "no other data set"
        return f"it was fitted together with {fitted_with}, asked for {', '.join(others)}"
    return None if quantizer.about.get("space") == embeddings.space else other_space(quantizer, embeddings)


def other_space(quantizer: Quantizer, embeddings: Embeddings) -> str:
    """What differs in words as far as both are described, else the fingerprints."""
    now, then = (_described(about) for about in (embeddings.about, quantizer.about))
    differing = [key for key in now if key in then and now[key] != then[key]]
    if differing:
        changed = "; ".join(f"{key} is {now[key]}, was {then[key]}" for key in differing)
        return f"the encoder or its settings differ: {changed}"
    space = str(quantizer.about.get("space"))
    return f"the embeddings' space is {embeddings.space[:12]}, the quantizer was fitted in {space[:12]}"


def _described(about: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder's settings and the template, without what does not change the space."""
    encoder = about.get("encoder") or {}  # of images: its source alone
    settings = encoder if isinstance(encoder, Mapping) else {"source": encoder}
    found = {key: value for key, value in settings.items() if key != "precision"}
    return found if about.get("template") is None else {**found, "template": about["template"]}


def _check_space(embeddings: Embeddings, quantizer: Quantizer) -> None:
    if (space := quantizer.about.get("space")) != embeddings.space:
        raise ValueError(
            f"the quantizer is stale: it was fitted to embeddings of space {space}, these are of "
            f"{embeddings.space} (another encoder or its settings); fit anew with `{COMMAND}`, which gives new ids, or "
            "embed as before"
        )


def _check_earlier(earlier: SemanticIds, quantizer: Quantizer, policy: str, extra_codes: int) -> None:
    sizes = (*quantizer.sizes, extra_codes) if policy == "extra_digit" else quantizer.sizes
    now = {"quantizer": quantizer.hash, "policy": policy, "sizes": sizes}
    then = {**earlier.about, "sizes": earlier.sizes}
    for what, value in now.items():
        if then.get(what) != value:
            raise ValueError(
                f"the earlier ids cannot be extended: their {what} is {then.get(what)}, now it is {value}; put it "
                f"back, or give new ids to all items with `{COMMAND}` (bundles trained on the old ones need training)"
            )


def _known(embeddings: Embeddings, earlier: SemanticIds | None) -> NDArray[np.int64]:
    """(N,) row among the earlier ids, -1 for items that have none."""
    return np.full(len(embeddings), -1) if earlier is None else earlier.rows(embeddings.item_ids)


def _counts(embeddings: Embeddings, earlier: SemanticIds | None, new: int) -> dict[str, int]:
    rows = _known(embeddings, earlier)
    known, present = rows >= 0, embeddings.present
    changed = np.zeros(0, bool)
    if earlier is not None:
        before, after = earlier.keys[rows[known & present]], embeddings.keys[known & present]
        changed = (before != "") & (before != after)
    return {
        "items": len(embeddings),
        "new": new,
        "known": int(known.sum()),
        "changed": int(changed.sum()),  # other content than their codes were made from
        "without_content": int((~present & ~known).sum()),  # and hence without an id
        "gone": 0 if earlier is None else len(earlier) - int(known.sum()),
    }


def _extended(
    earlier: SemanticIds | None,
    embeddings: Embeddings,
    new: NDArray[np.int64],
    quantized: NDArray[np.int32],
    resolved: Resolved,
    about: dict[str, Any],
) -> SemanticIds:
    ids, keys = embeddings.item_ids[new], embeddings.keys[new]
    added = np.full(len(new), earlier is not None)
    if earlier is None:
        return SemanticIds(ids, resolved.codes, quantized, added, resolved.sizes, about, keys)
    return SemanticIds(
        np.concatenate([earlier.item_ids, ids]),
        np.concatenate([earlier.codes, resolved.codes]),
        np.concatenate([earlier.quantized, quantized]),
        np.concatenate([earlier.added, added]),
        earlier.sizes,
        about,
        np.concatenate([earlier.keys, keys]),
    )


def of_one_encoder(embeddings: Embeddings, about: Mapping[str, Any], space: str) -> bool:
    """Whether the encoder of ``embeddings`` makes the vectors of ``space`` from what ``about`` says of them.

    Equal spaces are; of others only texts can be told, by the encoder's fingerprint and both templates.
    """
    if embeddings.space == space:
        return True
    encoder, own, other = (
        embeddings.about.get("fingerprint"),
        embeddings.about.get("template"),
        about.get("template"),
    )
    if encoder is None or own is None or other is None:
        return False
    return (text_space(encoder, own), text_space(encoder, other)) == (embeddings.space, space)


def vectors_of(embeddings: Embeddings, others: Mapping[str, Embeddings]) -> NDArray[np.float32]:
    """(N, D) of all items with content, of the data set and of ``others`` by name.

    Raises ValueError that names a data set whose vectors are another encoder's.
    """
    for name, other in others.items():
        if not of_one_encoder(embeddings, other.about, other.space):
            raise ValueError(
                f"quantizer_with={name}: its vectors are not of one encoder with these "
                f"({other.about.get('encoder')}, here {embeddings.about.get('encoder')}); embedded by an earlier "
                "version, run the pipeline embed once more"
            )
    return np.concatenate([each.vectors[each.present] for each in (embeddings, *others.values())])
