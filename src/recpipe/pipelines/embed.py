"""Pipeline embed: item embeddings of texts and images, cached by content, and their concatenation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kedro.pipeline import Pipeline

from recpipe.config import ConfigError, DataPaths, build_config
from recpipe.config.schema import DatasetConfig, EmbedConfig, select_block
from recpipe.pipelines.content_kinds import IMAGE, TEXT, TEXT_IMAGE
from recpipe.pipelines.types import DataFrame, Embeddings
from recpipe.pipelines.wiring import Wiring, create_node, node_inputs

if TYPE_CHECKING:
    from recpipe.content.embeddings import VectorFileConfig
    from recpipe.content.image_embeddings import ImageEncoderConfig
    from recpipe.content.text_embeddings import TextEncoderConfig
    from recpipe.content.tfidf import TfidfConfig

Encoders = Mapping[str, dict[str, Any]]


def text_encoder(name: str, encoders: Encoders) -> TextEncoderConfig | TfidfConfig | VectorFileConfig:
    """Settings of ``text_encoders.<name>``, typed by their ``kind``. Raises ConfigError."""
    from recpipe.content.embeddings import VectorFileConfig
    from recpipe.content.text_embeddings import TextEncoderConfig
    from recpipe.content.tfidf import TfidfConfig

    kinds = {"encoder": TextEncoderConfig, "tfidf": TfidfConfig, "file": VectorFileConfig}
    return _encoder("text", name, encoders, kinds)


def image_encoder(name: str, encoders: Encoders) -> ImageEncoderConfig | VectorFileConfig:
    """Settings of ``image_encoders.<name>``, typed by their ``kind``. Raises ConfigError."""
    from recpipe.content.embeddings import VectorFileConfig
    from recpipe.content.image_embeddings import ImageEncoderConfig

    return _encoder("image", name, encoders, {"encoder": ImageEncoderConfig, "file": VectorFileConfig})


def _encoder(modality: str, name: str, encoders: Encoders, kinds: Mapping[str, type]) -> Any:
    block, where = select_block(name, encoders, what=f"embed.{modality}"), f"{modality}_encoders.{name}"
    if (kind := block.pop("kind", "encoder")) not in kinds:
        raise ConfigError(f"{where}.kind is {kind!r}; allowed: {', '.join(kinds)}")
    if kind == "encoder" and not isinstance(block.get("source"), str):
        raise ConfigError(f"{where}.source is {block.get('source')!r}; give a hub name or a folder")
    return build_config(kinds[kind], block, where=where)


def embed_text(
    items: DataFrame, dataset: DatasetConfig, embed: EmbedConfig, text_encoders: dict[str, Any], paths: DataPaths
) -> Embeddings:
    """Embed the items' texts; the encoder is loaded only for texts that are not in the cache.

    Raises ValueError for a data set without texts.
    """
    from recpipe.content.embeddings import VectorFileConfig, embed_from_file
    from recpipe.content.item_texts import build_texts, clear_placeholder_texts, join_file
    from recpipe.content.text_embeddings import embed_texts
    from recpipe.content.tfidf import TfidfConfig, embed_tfidf

    content = None if dataset.content is None else dataset.content.text
    if content is None:
        raise ValueError(f"{dataset.title} has no texts to embed: add `content: {{text: ...}}` to the data set")
    config = text_encoder(embed.text, text_encoders)
    if isinstance(config, VectorFileConfig):
        return embed_from_file(items.to_arrow(), paths.raw, config, modality="text")
    folder = paths.cache("text") / embed.text
    table = clear_placeholder_texts(items.to_arrow())
    for file in content.tables:
        table = join_file(table, paths.raw, **file.model_dump())
    texts = build_texts(table, content.template)
    ids = table["item_id"].to_pylist()
    if isinstance(config, TfidfConfig):
        return embed_tfidf(ids, texts, config, state_folder=folder, template=content.template, refit=embed.refit)
    return embed_texts(ids, texts, config, template=content.template, cache_folder=folder)


def embed_images(
    items: DataFrame, dataset: DatasetConfig, embed: EmbedConfig, image_encoders: dict[str, Any], paths: DataPaths
) -> tuple[DataFrame, Embeddings]:
    """Embed the items' images; return also the quarantine of images that cannot be used.

    Raises ValueError for a data set without images.
    """
    import polars as pl

    from recpipe.content import image_embeddings as images
    from recpipe.content.embeddings import VectorFileConfig, embed_from_file
    from recpipe.content.image_sources import ImageSourceConfig, image_reader, image_references

    block = None if dataset.content is None else dataset.content.image
    if block is None:
        raise ValueError(f"{dataset.title} has no images to embed: add `content: {{image: ...}}` to the data set")
    config = image_encoder(embed.image, image_encoders)
    table = items.to_arrow()
    if isinstance(config, VectorFileConfig):
        vectors = embed_from_file(table, paths.raw, config, modality="image")
        return pl.DataFrame(images.quarantine_table([], [], [])), vectors
    source = ImageSourceConfig.from_block(block)
    embeddings, quarantine = images.embed_images(
        table["item_id"].to_pylist(),
        image_references(table, source),
        config,
        reader=image_reader(source, paths.raw, paths.cache("image") / "downloads"),
        cache_folder=paths.cache("image") / embed.image,
    )
    return pl.DataFrame(quarantine), embeddings


def join_embeddings(text_embeddings: Embeddings, image_embeddings: Embeddings) -> Embeddings:
    """Concatenate text and image embeddings."""
    from recpipe.content.embeddings import concatenate_embeddings

    return concatenate_embeddings(text_embeddings, image_embeddings)


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Create nodes for the modalities whose vectors the command needs."""
    shared = node_inputs("items", params=("embed", "paths")) | {"dataset": f"params:datasets.{wiring.dataset}"}
    texts, images = (shared | node_inputs(params=(f"{modality}_encoders",)) for modality in (TEXT, IMAGE))
    both = node_inputs("text_embeddings", "image_embeddings")
    nodes = [
        create_node(embed_text, texts, "text_embeddings", TEXT),
        create_node(embed_images, images, ["image_quarantine", "image_embeddings"], IMAGE),
        create_node(join_embeddings, both, "text_image_embeddings", TEXT_IMAGE),
    ]
    return Pipeline([node for node in nodes if node.namespace in wiring.vectors])
