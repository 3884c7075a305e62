"""Nodes of embed: short calls into recpipe.content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recpipe.pipelines.blocks import content_block, embed_block
from recpipe.pipelines.encoders import image_encoder, text_encoder


def embed_text(
    items: Any,
    raw_folder: Path,
    datasets: dict[str, Any],
    dataset: str,
    embed: dict[str, Any],
    text_encoders: dict[str, Any],
    text_cache: Path,
) -> Any:
    """Vectors of the items' texts; the encoder is loaded only for texts that it has not embedded before."""
    from recpipe.content import item_tables, templates
    from recpipe.content.text import embed_texts
    from recpipe.content.tfidf import TfidfConfig, embed_tfidf
    from recpipe.content.vector_file import VectorFile, embed_file
    from recpipe.training.allocator import keep_freed_memory

    content = content_block(datasets, dataset).text
    if content is None:
        raise ValueError(f"datasets.{dataset}.content.text is not given: there is no text to embed")
    chosen = embed_block(embed, datasets, dataset)
    config = text_encoder(chosen.text, text_encoders)
    if isinstance(config, VectorFile):
        return embed_file(items.to_arrow(), raw_folder, config, modality="text")
    folder = text_cache / chosen.text
    table = item_tables.without_stand_ins(items.to_arrow())
    for extra in content.tables:
        table = item_tables.with_columns(table, raw_folder, **extra.model_dump())
    texts = templates.texts(table, content.template)
    ids = table["item_id"].to_pylist()
    if isinstance(config, TfidfConfig):
        return embed_tfidf(
            ids, texts, config, state_folder=folder, template=content.template, refit=chosen.refit
        )
    keep_freed_memory()
    return embed_texts(ids, texts, config, template=content.template, cache_folder=folder)


def embed_images(
    items: Any,
    raw_folder: Path,
    datasets: dict[str, Any],
    dataset: str,
    embed: dict[str, Any],
    image_encoders: dict[str, Any],
    image_cache: Path,
) -> tuple[Any, Any]:
    """What is wrong with which image, and vectors of the others."""
    import polars as pl

    from recpipe.content import image, image_sources
    from recpipe.content.vector_file import VectorFile, embed_file

    content = content_block(datasets, dataset).image
    if content is None:
        raise ValueError(f"datasets.{dataset}.content.image is not given: there are no images to embed")
    name = embed_block(embed, datasets, dataset).image
    config = image_encoder(name, image_encoders)
    table = items.to_arrow()
    if isinstance(config, VectorFile):
        given = embed_file(table, raw_folder, config, modality="image")
        return pl.from_arrow(image.refused_images([], [], [])), given
    embeddings, refused = image.embed_images(
        table["item_id"].to_pylist(),
        image_sources.references(table, content),
        config,
        opener=image_sources.opener(content, raw_folder, image_cache / "downloads"),
        cache_folder=image_cache / name,
    )
    return pl.from_arrow(refused), embeddings


def join_embeddings(text_embeddings: Any, image_embeddings: Any) -> Any:
    """Text and image vectors side by side."""
    from recpipe.content.embeddings import joined

    return joined(text_embeddings, image_embeddings)
