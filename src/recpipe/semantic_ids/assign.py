"""Assignment of semantic ids to a catalogue, and rules for reusing a quantizer with other embeddings.

Vectors fit a quantizer if the same encoder made them, also from texts of another template: a model trained on one data
set can continue with another, as MQL4GRec pretrains.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recpipe.config import check_known
from recpipe.content.embeddings import Embeddings, text_space
from recpipe.data.protocol import Protocol
from recpipe.semantic_ids.collisions import POLICIES, REFUSE, resolve
from recpipe.semantic_ids.ids import SemanticIds
from recpipe.semantic_ids.quantizer import COMMAND, ItemVectors, Quantizer, build_quantizer
from recpipe.semantic_ids.vector_rows import VectorRows

log = logging.getLogger(__name__)


def assign(
    embeddings: Embeddings,
    quantizer: Quantizer,
    *,
    policy: str = "extra_digit",
    extra_codes: int = 256,
    earlier: SemanticIds | None = None,
) -> SemanticIds:
    """Assign ids to all items with content.

    Rows of ``earlier`` come first and do not change, also where the item left the catalogue or its content changed.
    Raises ValueError for a quantizer of another vector space, for ``earlier`` ids of another quantizer, policy or
    sizes, and for more items than ids.
    """
    check_known(policy, (*POLICIES, REFUSE), what="policy for collisions")
    if (space := quantizer.about.get("space")) != embeddings.space:
        raise ValueError(
            f"the quantizer is stale: it was fitted to embeddings of space {space}, these are of "
            f"{embeddings.space} (another encoder or its settings); fit anew with `{COMMAND}`, which gives new ids, or "
            "embed as before"
        )
    if earlier is not None:
        _check_earlier(earlier, quantizer, policy, extra_codes)
    earlier_rows = np.full(len(embeddings), -1) if earlier is None else earlier.rows(embeddings.item_ids)
    new = np.flatnonzero(embeddings.present & (earlier_rows < 0))
    x_ND = VectorRows(embeddings.vectors, new)
    quantized = quantizer.encode(x_ND) if len(new) else np.zeros((0, len(quantizer.sizes)), np.int32)
    resolution = resolve(
        policy,
        quantized,
        quantizer.sizes,
        lambda rows, codes, level: quantizer.level_distances(x_ND[rows], codes, level),
        extra_codes=extra_codes,
        taken=None if earlier is None else earlier.codes,
    )
    counts = _counts(embeddings, earlier, earlier_rows, len(new)) | resolution.counts
    log.info("semantic ids: %s", ", ".join(f"{n} {what}" for what, n in counts.items()))
    ids = SemanticIds(
        embeddings.item_ids[new],
        resolution.codes,
        quantized,
        np.full(len(new), earlier is not None),
        resolution.sizes,
        {
            "quantizer": quantizer.hash,
            "space": embeddings.space,
            "embeddings": embeddings.hash,
            "policy": policy,
            "modality": quantizer.about.get("modality", embeddings.about.get("modality")),
            "counts": counts,
            **{key: quantizer.about[key] for key in ("collaborative",) if key in quantizer.about},
        },
        embeddings.keys[new],
    )
    return ids if earlier is None else earlier.append(ids)


def _check_earlier(earlier: SemanticIds, quantizer: Quantizer, policy: str, extra_codes: int) -> None:
    sizes = (*quantizer.sizes, extra_codes) if policy == "extra_digit" else quantizer.sizes
    previous = {**earlier.about, "sizes": earlier.sizes}
    for key, value in {"quantizer": quantizer.hash, "policy": policy, "sizes": sizes}.items():
        if previous.get(key) != value:
            raise ValueError(
                f"the earlier ids cannot be extended: their {key} is {previous.get(key)}, now it is {value}; restore "
                f"it, or give new ids to all items with `{COMMAND}` (bundles trained on the old ones need training)"
            )


def _counts(embeddings: Embeddings, earlier: SemanticIds | None, rows: NDArray[np.int64], new: int) -> dict[str, int]:
    has_id, present, changed = rows >= 0, embeddings.present, 0
    if earlier is not None:
        before, after = earlier.keys[rows[has_id & present]], embeddings.keys[has_id & present]
        changed = int(((before != "") & (before != after)).sum())
    return {
        "items": len(embeddings),
        "new": new,
        "known": int(has_id.sum()),
        "changed": changed,  # other content than their codes were made from
        "without_content": int((~present & ~has_id).sum()),  # and hence without an id
        "gone": 0 if earlier is None else len(earlier) - int(has_id.sum()),
    }


def reuse_obstacle(
    quantizer: Quantizer,
    embeddings: Embeddings,
    type_: str,
    settings: Mapping[str, Any],
    *,
    seed: int,
    others: Sequence[str] = (),
    collaborative: Embeddings | None = None,
) -> str | None:
    """Return the first difference of ``quantizer`` from one that would be fitted now, None if it can be reused.

    ``others`` are data sets that it must have been fitted to as well; with none, any will do. ``collaborative``: item
    vectors that a new one would be aligned with.
    """
    config = build_quantizer(type_, settings)
    if config.type != quantizer.type:
        return f"type is {config.type}, the fitted one is {quantizer.type}"
    if changes := _changes(config.settings, quantizer.settings):
        return f"other settings: {changes}"
    if (old_seed := quantizer.about.get("seed")) != seed:
        return f"seed is {seed}, was {old_seed}"
    if others and (fitted_to := sorted(quantizer.about.get("with") or {})) != sorted(others):
        fitted_with = ", ".join(fitted_to) or "no other data set"
        return f"it was fitted together with {fitted_with}, requested is {', '.join(others)}"
    if quantizer.about.get("space") != embeddings.space:
        return space_difference(quantizer, embeddings)
    return None if collaborative is None else _alignment_obstacle(quantizer, collaborative)


def alignment_targets(embeddings: Embeddings, collaborative: Embeddings, count: int) -> ItemVectors:
    """Return the item vector of each row that a quantizer is fitted to: present items, then other data sets' items."""
    rows = collaborative.rows(embeddings.item_ids[embeddings.present])
    present, vectors = np.zeros(count, bool), np.zeros((count, collaborative.width), np.float32)
    present[: len(rows)] = (rows >= 0) & collaborative.present[rows]
    vectors[present] = collaborative.vectors[rows[present[: len(rows)]]]
    log.info("%s of %s items have an item vector of %s", int(present.sum()), count, collaborative.about["model"])
    return ItemVectors(vectors, present)


def _alignment_obstacle(quantizer: Quantizer, collaborative: Embeddings) -> str | None:
    """Return why codes of ``quantizer`` may not be reused: its item vectors are of another split.

    A model that was trained again on the same training data does not change ids.
    """
    before, now = (about["runs"][0]["protocol"] for about in (quantizer.about["collaborative"], collaborative.about))
    differing = Protocol.from_dict(before).data_differences(Protocol.from_dict(now))
    differing = [name for name in differing if name != "history"]
    return f"item vectors were of another split ({', '.join(differing)} differ)" if differing else None


def space_difference(quantizer: Quantizer, embeddings: Embeddings) -> str:
    """Describe which encoder settings differ, or the fingerprints where either side is not described."""
    now, before = _encoder_settings(embeddings.about), _encoder_settings(quantizer.about)
    if changes := _changes({key: now[key] for key in now if key in before}, before):
        return f"the encoder or its settings differ: {changes}"
    space = str(quantizer.about.get("space"))
    return f"the embeddings' space is {embeddings.space[:12]}, the quantizer was fitted in {space[:12]}"


def _changes(now: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    changed = (key for key, value in now.items() if before.get(key) != value)
    return "; ".join(f"{key} is {now[key]}, was {before.get(key)}" for key in changed)


def _encoder_settings(about: Mapping[str, Any]) -> dict[str, Any]:
    """Encoder settings and template, without the precision, which is not part of a vector space."""
    encoder = about.get("encoder") or {}  # of images: its source alone
    settings = encoder if isinstance(encoder, Mapping) else {"source": encoder}
    result = {key: value for key, value in settings.items() if key != "precision"}
    return result if about.get("template") is None else {**result, "template": about["template"]}


def same_encoder(embeddings: Embeddings, about: Mapping[str, Any], space: str) -> bool:
    """Check whether the encoder of ``embeddings`` made the vectors of another ``space``, described by ``about``.

    True for equal spaces. Different spaces are compared for texts only, by fingerprint and both templates.
    """
    if embeddings.space == space:
        return True
    encoder, template = embeddings.about.get("fingerprint"), embeddings.about.get("template")
    if encoder is None or template is None or (other_template := about.get("template")) is None:
        return False
    return (text_space(encoder, template), text_space(encoder, other_template)) == (embeddings.space, space)
