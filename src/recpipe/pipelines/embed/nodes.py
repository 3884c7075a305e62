"""Nodes of embed: calls into recpipe.content."""

from __future__ import annotations

from typing import Any

from recpipe.config import DataPaths
from recpipe.config.schema import DatasetConfig, EmbedConfig
from recpipe.pipelines.encoders import image_encoder, text_encoder
from recpipe.pipelines.types import DataFrame, Embeddings


def embed_text(
    items: DataFrame,
    dataset: DatasetConfig,
    embed: EmbedConfig,
    text_encoders: dict[str, Any],
    paths: DataPaths,
) -> Embeddings:
    """Embed the items' texts; the encoder is loaded only for texts that are not in the cache."""
    from recpipe.content import item_tables, templates
    from recpipe.content.text import embed_texts
    from recpipe.content.tfidf import TfidfConfig, embed_tfidf
    from recpipe.content.vector_file import VectorFile, embed_file
    from recpipe.training.allocator import keep_freed_memory

    content = None if dataset.content is None else dataset.content.text
    if content is None:
        raise ValueError(f"{dataset.title}: `content: {{text: ...}}` is not given, there is no text to embed")
    config = text_encoder(embed.text, text_encoders)
    if isinstance(config, VectorFile):
        return embed_file(items.to_arrow(), paths.raw, config, modality="text")
    folder = paths.cache("text") / embed.text
    table = item_tables.without_stand_ins(items.to_arrow())
    for extra in content.tables:
        table = item_tables.with_columns(table, paths.raw, **extra.model_dump())
    texts = templates.texts(table, content.template)
    ids = table["item_id"].to_pylist()
    if isinstance(config, TfidfConfig):
        return embed_tfidf(
            ids, texts, config, state_folder=folder, template=content.template, refit=embed.refit
        )
    keep_freed_memory()
    return embed_texts(ids, texts, config, template=content.template, cache_folder=folder)


def embed_images(
    items: DataFrame,
    dataset: DatasetConfig,
    embed: EmbedConfig,
    image_encoders: dict[str, Any],
    paths: DataPaths,
) -> tuple[DataFrame, Embeddings]:
    """Embed the items' images: a table of images that cannot be used, and vectors of the others."""
    import polars as pl

    from recpipe.content import image, image_sources
    from recpipe.content.vector_file import VectorFile, embed_file

    content = None if dataset.content is None else dataset.content.image
    if content is None:
        raise ValueError(
            f"{dataset.title}: `content: {{image: ...}}` is not given, there are no images to embed"
        )
    config = image_encoder(embed.image, image_encoders)
    table = items.to_arrow()
    if isinstance(config, VectorFile):
        vectors = embed_file(table, paths.raw, config, modality="image")
        return pl.DataFrame(image.refused_images([], [], [])), vectors
    embeddings, faults = image.embed_images(
        table["item_id"].to_pylist(),
        image_sources.references(table, content),
        config,
        opener=image_sources.opener(content, paths.raw, paths.cache("image") / "downloads"),
        cache_folder=paths.cache("image") / embed.image,
    )
    return pl.DataFrame(faults), embeddings


def join_embeddings(text_embeddings: Embeddings, image_embeddings: Embeddings) -> Embeddings:
    """Concatenate text and image vectors."""
    from recpipe.content.embeddings import joined

    return joined(text_embeddings, image_embeddings)
