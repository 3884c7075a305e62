"""Settings of the encoders in the parameters `text_encoders` and `image_encoders`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recpipe.config import build_config
from recpipe.config.schema import select_block


def text_encoder(name: str, encoders: Mapping[str, Any]) -> Any:
    """Settings of `text_encoders.<name>`: EncoderConfig, TfidfConfig or VectorFile, by its `kind`."""
    from recpipe.content.text_embeddings import EncoderConfig
    from recpipe.content.tfidf import TfidfConfig
    from recpipe.content.vector_file import VectorFile

    kinds = {"encoder": EncoderConfig, "tfidf": TfidfConfig, "file": VectorFile}
    return _encoder("text", name, encoders, kinds)


def image_encoder(name: str, encoders: Mapping[str, Any]) -> Any:
    """Settings of `image_encoders.<name>`: ImageConfig or VectorFile, by its `kind`."""
    from recpipe.content.image_embeddings import ImageConfig
    from recpipe.content.vector_file import VectorFile

    return _encoder("image", name, encoders, {"encoder": ImageConfig, "file": VectorFile})


def _encoder(modality: str, name: str, encoders: Mapping[str, Any], kinds: Mapping[str, Any]) -> Any:
    block, where = select_block(name, encoders, what=f"embed.{modality}"), f"{modality}_encoders.{name}"
    if (kind := block.pop("kind", "encoder")) not in kinds:
        raise ValueError(f"{where}.kind is {kind!r}; allowed: {', '.join(kinds)}")
    return _settings(kinds[kind], block, where)


def _settings(cls: Any, block: dict[str, Any], where: str) -> Any:
    if "source" in cls.__dataclass_fields__ and not isinstance(block.get("source"), str):
        raise ValueError(f"{where}.source is {block.get('source')!r}; give a hub name or a folder")
    return build_config(cls, block, where=where)
