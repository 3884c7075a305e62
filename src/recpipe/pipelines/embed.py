"""Pipeline embed: item vectors of texts and images, cached by content. A node per modality, and one that joins them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kedro.pipeline import Node, Pipeline

from recpipe.config import DataPaths, build_config
from recpipe.config.schema import DatasetConfig, EmbedConfig, select_block
from recpipe.pipelines.content_kinds import IMAGE, TEXT, TEXT_IMAGE
from recpipe.pipelines.types import DataFrame, Embeddings
from recpipe.pipelines.wiring import Wiring


def text_encoder(name: str, encoders: Mapping[str, Any]) -> Any:
    """Settings of `text_encoders.<name>`: TextEncoderConfig, TfidfConfig or VectorFileConfig, by its `kind`."""
    from recpipe.content.text_embeddings import TextEncoderConfig
    from recpipe.content.tfidf import TfidfConfig
    from recpipe.content.vector_file import VectorFileConfig

    kinds = {"encoder": TextEncoderConfig, "tfidf": TfidfConfig, "file": VectorFileConfig}
    return _encoder("text", name, encoders, kinds)


def image_encoder(name: str, encoders: Mapping[str, Any]) -> Any:
    """Settings of `image_encoders.<name>`: ImageEncoderConfig or VectorFileConfig, by its `kind`."""
    from recpipe.content.image_embeddings import ImageEncoderConfig
    from recpipe.content.vector_file import VectorFileConfig

    return _encoder("image", name, encoders, {"encoder": ImageEncoderConfig, "file": VectorFileConfig})


def _encoder(modality: str, name: str, encoders: Mapping[str, Any], kinds: Mapping[str, Any]) -> Any:
    block, where = select_block(name, encoders, what=f"embed.{modality}"), f"{modality}_encoders.{name}"
    if (kind := block.pop("kind", "encoder")) not in kinds:
        raise ValueError(f"{where}.kind is {kind!r}; allowed: {', '.join(kinds)}")
    return _settings(kinds[kind], block, where)


def _settings(cls: Any, block: dict[str, Any], where: str) -> Any:
    if "source" in cls.__dataclass_fields__ and not isinstance(block.get("source"), str):
        raise ValueError(f"{where}.source is {block.get('source')!r}; give a hub name or a folder")
    return build_config(cls, block, where=where)


def embed_text(
    items: DataFrame,
    dataset: DatasetConfig,
    embed: EmbedConfig,
    text_encoders: dict[str, Any],
    paths: DataPaths,
) -> Embeddings:
    """Embed the items' texts; the encoder is loaded only for texts that are not in the cache."""
    from recpipe.content import item_texts
    from recpipe.content.text_embeddings import embed_texts
    from recpipe.content.tfidf import TfidfConfig, embed_tfidf
    from recpipe.content.vector_file import VectorFileConfig, embed_file
    from recpipe.training.allocator import keep_freed_memory

    content = None if dataset.content is None else dataset.content.text
    if content is None:
        raise ValueError(f"{dataset.title}: `content: {{text: ...}}` is not given, there is no text to embed")
    config = text_encoder(embed.text, text_encoders)
    if isinstance(config, VectorFileConfig):
        return embed_file(items.to_arrow(), paths.raw, config, modality="text")
    folder = paths.cache("text") / embed.text
    table = item_texts.clear_placeholder_texts(items.to_arrow())
    for extra in content.tables:
        table = item_texts.with_columns(table, paths.raw, **extra.model_dump())
    texts = item_texts.texts(table, content.template)
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

    from recpipe.content import image_embeddings as image
    from recpipe.content import image_sources
    from recpipe.content.vector_file import VectorFileConfig, embed_file

    content = None if dataset.content is None else dataset.content.image
    if content is None:
        raise ValueError(
            f"{dataset.title}: `content: {{image: ...}}` is not given, there are no images to embed"
        )
    config = image_encoder(embed.image, image_encoders)
    table = items.to_arrow()
    if isinstance(config, VectorFileConfig):
        vectors = embed_file(table, paths.raw, config, modality="image")
        return pl.DataFrame(image.quarantine_table([], [], [])), vectors
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
    from recpipe.content.embeddings import concatenate_embeddings

    return concatenate_embeddings(text_embeddings, image_embeddings)


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Nodes for the modalities whose vectors the command needs."""
    shared = ["items", f"params:datasets.{wiring.dataset}", "params:embed"]
    texts = [*shared, "params:text_encoders", "params:paths"]
    images = [*shared, "params:image_encoders", "params:paths"]
    nodes = {
        TEXT: Node(embed_text, texts, "text_embeddings", name="embed_text", namespace=TEXT, tags=TEXT),
        IMAGE: Node(
            embed_images,
            images,
            ["image_quarantine", "image_embeddings"],
            name="embed_images",
            namespace=IMAGE,
            tags=IMAGE,
        ),
        TEXT_IMAGE: Node(
            join_embeddings,
            ["text_embeddings", "image_embeddings"],
            "text_image_embeddings",
            name="join_embeddings",
            namespace=TEXT_IMAGE,
            tags=TEXT_IMAGE,
        ),
    }
    return Pipeline([nodes[modality] for modality in wiring.vectors])
