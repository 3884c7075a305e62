"""Nodes of semantic_ids: short calls into recpipe.semantic_ids, the same for every kind of ids."""

from __future__ import annotations

import copy
import logging
import time
from typing import Any

from recpipe.pipelines.blocks import Category, content_block, ids_block

log = logging.getLogger(__name__)


class Collapsed(ValueError):
    """The ids failed the quality gate; the message says in what, and what to change."""


def fit_quantizer(
    ids_kind: str,
    embeddings: Any,
    earlier_quantizer: Any | None,
    datasets: dict[str, Any],
    dataset: str,
    semantic_ids: dict[str, Any],
    quantizer_from: str = "none",
    lent_quantizer: Any | None = None,
    others: dict[str, Any] | None = None,
) -> tuple[Any, Any]:
    """The quantizer and its curve: that of the data set `quantizer_from`; else the earlier one where it is of the same
    settings and the same vector space; else one fitted to these vectors and to those of the data sets `others`.
    """
    import polars as pl

    from recpipe.pipelines.progress import tell
    from recpipe.semantic_ids import quantizer as quantizers
    from recpipe.semantic_ids.assign import reusable
    from recpipe.semantic_ids.joint import vectors_of

    block = ids_block(semantic_ids, datasets, dataset, ids_kind)
    if dataset in (others or {}):
        raise ValueError(f"quantizer_with={dataset} is the data set itself; name others")
    if others and quantizer_from != "none":
        raise ValueError("quantizer_with fits a quantizer, and quantizer_from lends one; say one of them")
    if quantizer_from != "none":
        lent = _lent(lent_quantizer, embeddings, quantizer_from)
        return lent, pl.DataFrame(lent.history, infer_schema_length=None)
    kind, config = block.chosen()
    why = "semantic_ids.refit is set" if block.refit else None
    earlier_quantizer = _whole(earlier_quantizer, refit=block.refit)
    if earlier_quantizer is None:
        log.info("fitting %s, of which there is none yet", block.quantizer)
        fitted = None
    elif why := why or reusable(
        earlier_quantizer, embeddings, {"type": kind, **config}, block.seed, others=sorted(others or {})
    ):
        log.warning("fitting %s anew, all ids may change: %s", block.quantizer, why)
        fitted = None
    else:
        log.info("%s of an earlier run fits these embeddings: kept", block.quantizer)
        fitted = earlier_quantizer
    if fitted is None:
        started = time.perf_counter()
        fitted = quantizers.build(kind, config)
        fitted.fit(vectors_of(embeddings, others or {}), seed=block.seed, on_epoch=tell)
        fitted.about = {
            "space": embeddings.space,
            "embeddings": embeddings.hash,
            "modality": embeddings.about.get("modality"),
            "items": int(embeddings.present.sum()),
            "seed": block.seed,
            "encoder": embeddings.about.get("encoder"),
            "template": embeddings.about.get("template"),
            "seconds": time.perf_counter() - started,
            **({"with": {name: each.hash for name, each in sorted(others.items())}} if others else {}),
        }
    return fitted, pl.DataFrame(fitted.history, infer_schema_length=None)


def assign_ids(
    ids_kind: str,
    embeddings: Any,
    quantizer: Any,
    earlier_ids: Any | None,
    datasets: dict[str, Any],
    dataset: str,
    semantic_ids: dict[str, Any],
) -> Any:
    """Ids of all items with content; those given under the same quantizer and policy stay as they are."""
    from recpipe.semantic_ids.assign import assign

    block = ids_block(semantic_ids, datasets, dataset, ids_kind)
    earlier_ids = _whole(earlier_ids, refit=block.refit)
    if earlier_ids is not None and (why := _made_otherwise(earlier_ids, quantizer, block)):
        log.warning("all %s ids are given anew: %s", f"{len(earlier_ids):,}", why)
        earlier_ids = None
    return assign(
        embeddings, quantizer, policy=block.collisions, extra_codes=block.extra_codes, earlier=earlier_ids
    )


def _lent(quantizer: Any | None, embeddings: Any, dataset: str) -> Any:
    """As of the space of these embeddings: that of its own if one encoder made both, from whatever template.

    Raises ValueError where there is none to be lent, or where another encoder made what it was fitted to.
    """
    from recpipe.semantic_ids.assign import other_space
    from recpipe.semantic_ids.joint import of_one_encoder

    quantizer = _whole(quantizer, refit=False)
    if quantizer is None:
        raise ValueError(
            f"quantizer_from={dataset}: it has no quantizer; run `kedro run --pipelines=semantic_ids --params "
            f"dataset={dataset}`"
        )
    if not of_one_encoder(embeddings, quantizer.about, str(quantizer.about.get("space"))):
        raise ValueError(
            f"quantizer_from={dataset}: {other_space(quantizer, embeddings)}; both need vectors of one encoder "
            "(embedded by an earlier version, run the pipeline embed once more)"
        )
    own = {"space": embeddings.space, "template": embeddings.about.get("template"), "lent_by": dataset}
    log.info("the quantizer of %s makes these ids", dataset)
    if (template := quantizer.about.get("template")) != own["template"]:
        log.warning("it was fitted to texts by the template %r, these are by %r", template, own["template"])
    quantizer = copy.copy(quantizer)
    quantizer.about = {**quantizer.about, **own}
    return quantizer


def _whole(earlier: Any | None, *, refit: bool) -> Any | None:
    """What an earlier run left, None where there is nothing. Raises ValueError for a broken file, unless `refit`."""
    from recpipe.io.objects import Broken

    if not isinstance(earlier, Broken):
        return earlier
    if refit:
        log.warning("%s cannot be read and is made anew: %s", earlier.path, earlier.error)
        return None
    raise ValueError(
        f"{earlier.path} cannot be read ({earlier.error}). Put a copy back, or make new ids for all items: add "
        "`--params semantic_ids.refit=true`"
    )


def _made_otherwise(ids: Any, quantizer: Any, block: Any) -> str | None:
    """Why earlier ids cannot be kept, None if they can."""
    if block.refit:
        return "semantic_ids.refit is set"
    if ids.about["quantizer"] != quantizer.hash:
        return "the quantizer is another one"
    if ids.about["policy"] != block.collisions:
        return f"collisions is {block.collisions}, was {ids.about['policy']}"
    return None


def measure_ids(
    ids_kind: str,
    embeddings: Any,
    quantizer: Any,
    ids: Any,
    items: Any,
    datasets: dict[str, Any],
    dataset: str,
    semantic_ids: dict[str, Any],
) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Two figures, the checks as a table, and what the gate judges by."""
    import polars as pl

    from recpipe.reporting import id_figures
    from recpipe.semantic_ids import quality

    block = ids_block(semantic_ids, datasets, dataset, ids_kind)
    rows = embeddings.rows(ids.item_ids)
    # An item that left the catalogue, or lost its content, keeps its id but has no vector any more.
    here = (rows >= 0) & embeddings.present[rows]
    table = _beside(items, ids.item_ids)
    categories = _categories(table.to_arrow(), content_block(datasets, dataset).category)
    measured = quality.measure(
        ids.codes[here],
        ids.quantized[here],
        ids.sizes,
        vectors_ND=embeddings.vectors[rows[here]],
        reconstructed_ND=quantizer.decode(ids.quantized[here]),
        categories=categories and [name for name, kept in zip(categories, here, strict=True) if kept],
        seed=block.seed,
    )
    kind, _ = block.chosen()
    lent_by = quantizer.about.get("lent_by")
    judged = quality.judge(
        measured, block.gate_settings(), quantizer=block.quantizer, kind=kind, lent_by=lent_by
    )
    about = {
        "modality": ids_kind,
        "quantizer": {"name": block.quantizer, "hash": quantizer.hash, **quantizer.about},
        "policy": block.collisions,
        "ids": ids.hash,
        "sizes": list(ids.sizes),
        "without_content": ids.about["counts"]["without_content"],
        "added": int(ids.added.sum()),
        "embeddings": embeddings.about,
    }
    depth = ids.quantized.shape[1]
    figures = (
        id_figures.usage_heatmap(ids.quantized, ids.sizes),
        id_figures.sunburst(
            ids.quantized, table["title"].to_list(), categories=categories, depth=min(depth, 3)
        ),
    )
    schema = ["check", "measured", "asked for", "passed"]
    checks = pl.DataFrame(id_figures.quality_rows(judged), schema=schema, orient="row")
    return *figures, checks, {**judged, **about}


def check_ids(quality: dict[str, Any], dataset: str) -> dict[str, Any]:
    """The verdict of the gate. Raises `Collapsed` where a check failed; figures and numbers are on disk by then."""
    failed = [check for check in quality["checks"] if not check["passed"]]
    if failed:
        lines = [
            f"  {check['name']} is {check['value']:.3g}, asked for {check['asks']} {check['threshold']:.3g}: "
            f"{check['advice']}"
            for check in failed
        ]
        raise Collapsed(
            f"the {quality['modality']} ids did not pass the quality gate (semantic_ids.gate):\n"
            + "\n".join(lines)
            + f"\n  Figures and numbers: data/08_reporting/{dataset}/semantic_ids, or `make viz`"
        )
    log.info("%s ids passed the quality gate: %s", quality["modality"], _in_words(quality))
    return {"ids": quality["ids"], "passed": True, "checks": quality["checks"]}


def build_tree(ids: Any, gate: dict[str, Any]) -> Any:
    """The prefix tree of ids that passed."""
    from recpipe.semantic_ids.prefix_tree import PrefixTree

    if gate["ids"] != ids.hash:
        raise ValueError(
            "the gate passed other ids than those on disk: run `kedro run --pipelines=semantic_ids` again"
        )
    return PrefixTree.build(
        ids.codes,
        ids.sizes,
        source=ids.hash,
        shared=not ids.unique,
    )


def _beside(items: Any, item_ids: Any) -> Any:
    """The rows of `items` in the order of `item_ids`, null where an item is not among them any more."""
    import polars as pl

    return pl.DataFrame({"item_id": item_ids.tolist()}, schema={"item_id": pl.String}).join(
        items, on="item_id", how="left", maintain_order="left"
    )


def _categories(table: Any, category: Category | None) -> list[str | None] | None:
    from recpipe.semantic_ids.quality import leaf_categories

    if category is None:
        return None
    if category.column not in table.column_names:
        raise ValueError(
            f"content.category.column is {category.column!r}; items have {', '.join(table.column_names)}"
        )
    return leaf_categories(table[category.column], category.of_list)


def _in_words(quality: dict[str, Any]) -> str:
    from recpipe.reporting.wording import codes_per_level

    used = min(level["usage"] for level in quality["levels"])
    alone = quality["collisions"]["before"]["distinct"]
    sizes = codes_per_level(quality["sizes"])
    return f"{sizes} codes, least used level {used:.1%}, {alone:,} distinct of {quality['items']:,} before resolution"
