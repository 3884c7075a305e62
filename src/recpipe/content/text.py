"""Texts of items as vectors of a pretrained encoder; only texts that this encoder has not seen are computed.

Shape letters: N items, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recpipe.content import text_encoder
from recpipe.content.devices import choose_device, choose_precision
from recpipe.content.embeddings import Embeddings, check_unique, content_keys, digest, text_space
from recpipe.content.pretrained import fingerprint, model_folder, read_json
from recpipe.content.vector_cache import Positions, VectorCache, embed_missing

log = logging.getLogger(__name__)

POOLINGS = ("mean", "cls", "last", "mean_dense")
LENGTH = 512  # tokens, where neither conf nor model says


@dataclass(frozen=True)
class EncoderConfig:
    """An encoder of the conf. ``pooling`` and ``max_length`` null: as the model's sentence-transformers files say.

    source: hub name or local folder. pooling: mean, cls, last (token), mean_dense (mean, then the linear layers of the
    model's ``*_Dense`` folders, as sentence-T5 has it). batch_tokens null: what suits the device.
    """

    source: str
    pooling: str | None = "mean"
    prefix: str = ""
    normalise: bool = True
    max_length: int | None = 256
    precision: str = "auto"
    device: str = "auto"
    batch_tokens: int | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise ValueError(f"pooling is {self.pooling!r}; allowed: {', '.join(POOLINGS)}, null")
        if self.max_length is not None and self.max_length < 3:
            raise ValueError(f"max_length is {self.max_length}; it must be at least 3 tokens")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise ValueError(f"batch_tokens is {self.batch_tokens}; it must be at least 1")


def embed_texts(
    item_ids: Sequence[str],
    texts: Sequence[str | None],
    config: EncoderConfig,
    *,
    cache_folder: Path,
    template: str = "",
) -> Embeddings:
    """One vector per item, none where its text is null or blank. Equal texts are encoded once.

    template: where the texts come from; part of the space, as precision is not: a laptop and a GPU share one space, and
    keep their vectors apart in the cache. Raises ValueError for ids that occur twice and for an
    encoder that is not whole, custom code or not to be had.
    """
    check_unique(item_ids)
    if len(item_ids) != len(texts):
        raise ValueError(f"{len(item_ids)} item ids and {len(texts)} texts; there must be one text per item")
    stripped = [text.strip() or None if text is not None else None for text in texts]
    folder = model_folder(config.source, revision=config.revision)
    config = resolved(config, folder)
    encoder = _encoder_space(config, folder)
    keys = content_keys(encoder, stripped)
    present = keys != ""
    vectors, tokens = _vectors(keys[present], [t for t in stripped if t], config, folder, Path(cache_folder))
    out = np.zeros((len(keys), vectors.shape[1]), np.float32)
    out[present] = vectors
    about = _described(config, template, keys, tokens) | {"fingerprint": encoder}
    _tell(about)
    ids = np.array(item_ids, dtype=object)
    return Embeddings(ids, out, present, keys, text_space(encoder, template), about)


def resolved(config: EncoderConfig, folder: Path) -> EncoderConfig:
    """Without null and auto. Raises ValueError for more tokens than the model has positions."""
    device = choose_device(config.device)
    limit = _limit(folder)
    length = config.max_length or _sentence_length(folder) or min(limit or LENGTH, LENGTH)
    if limit is not None and length > limit:
        raise ValueError(f"max_length is {length}; {config.source} reads at most {limit} tokens: lower it")
    return replace(
        config,
        pooling=config.pooling or _sentence_pooling(folder),
        max_length=length,
        precision=choose_precision(config.precision, device),
        device=str(device),
    )


def _vectors(
    keys: NDArray[np.object_], texts: list[str], config: EncoderConfig, folder: Path, cache_folder: Path
) -> tuple[NDArray[np.float32], dict[str, int]]:
    if not len(keys):
        log.warning("no item has a text: there is nothing to embed")
        return np.zeros((0, 0), np.float32), {}
    counts = VectorCache(cache_folder / "tokens", 2)  # of each text: tokens, whether cut
    compute = _computing(keys, texts, config, folder, counts)
    vectors = embed_missing(keys, compute, VectorCache(cache_folder / config.precision), label="embed texts")
    counts.tidy()
    tokens, cut = counts.get(keys)[1].sum(axis=0, dtype=np.int64).tolist()
    return vectors, {"tokens": tokens, "cut": cut}


def _computing(
    keys: NDArray[np.object_], texts: list[str], config: EncoderConfig, folder: Path, counts: VectorCache
) -> Callable[[Positions], Iterator[tuple[Positions, NDArray[np.float32]]]]:
    def compute(positions: Positions) -> Iterator[tuple[Positions, NDArray[np.float32]]]:
        encoder = text_encoder.load(
            folder,
            pooling=config.pooling or "mean",
            normalise=config.normalise,
            precision=config.precision,
            device=config.device,
        )
        tokens = encoder.tokenise(
            [config.prefix + texts[at] for at in positions], config.max_length or LENGTH
        )
        counts.add(keys[positions], np.stack([tokens.lengths, tokens.cut], axis=1).astype(np.float32))
        for places, vectors in encoder.encode(tokens, config.batch_tokens):
            yield positions[places], vectors

    return compute


def _encoder_space(config: EncoderConfig, folder: Path) -> str:
    decisive = (config.pooling, config.prefix, config.normalise, config.max_length)
    return digest("encoder", 1, fingerprint(folder), *decisive)


def _limit(folder: Path) -> int | None:
    """Tokens that fit the model's learned positions; None where it has none, or turns them."""
    described = read_json(folder / "config.json")
    positions = described.get("max_position_embeddings")
    if not positions or "rope_theta" in described or "rope_parameters" in described:
        return None
    roberta = described.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet")
    return positions - 2 if roberta else positions  # they number positions from the padding index on


def _sentence_length(folder: Path) -> int | None:
    path = folder / "sentence_bert_config.json"
    return read_json(path).get("max_seq_length") if path.is_file() else None


def _sentence_pooling(folder: Path) -> str:
    path = folder / "1_Pooling" / "config.json"
    modes: dict[str, Any] = read_json(path) if path.is_file() else {"pooling_mode_mean_tokens": True}
    on = sorted(name for name, value in modes.items() if name.startswith("pooling_mode_") and value is True)
    names = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_lasttoken": "last",
    }
    if "pooling_mode" in modes:  # sentence-transformers 6
        on, names = [str(modes["pooling_mode"])], {"mean": "mean", "cls": "cls", "lasttoken": "last"}
    if len(on) != 1 or on[0] not in names:
        raise ValueError(f"{path} pools by {', '.join(on)}: set `pooling` to one of {', '.join(POOLINGS)}")
    pooling = names[on[0]]
    return "mean_dense" if pooling == "mean" and text_encoder.dense_folders(folder) else pooling


def _described(
    config: EncoderConfig, template: str, keys: NDArray[np.object_], tokens: dict[str, int]
) -> dict[str, Any]:
    machine = ("device", "batch_tokens")
    return {
        "modality": "text",
        "template": template,
        "encoder": {key: value for key, value in asdict(config).items() if key not in machine},
        "items": len(keys),
        "without_text": keys.tolist().count(""),
        "distinct_texts": len(set(keys.tolist()) - {""}),
        **tokens,
    }


def _tell(about: dict[str, Any]) -> None:
    if about["without_text"]:
        log.info("%s of %s items have no text", f"{about['without_text']:,}", f"{about['items']:,}")
    if about.get("cut"):
        length = about["encoder"]["max_length"]
        log.info("%s texts are longer than %s tokens and were cut", f"{about['cut']:,}", length)
