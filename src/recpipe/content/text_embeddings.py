"""A pretrained text encoder: tokens kept flat, batches of nearly equal length, pooling.

Shape letters: B texts of a batch, T tokens, D width.

Texts of items as vectors of a pretrained encoder; only texts that this encoder has not seen are computed.

Shape letters: N items, D width.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from recpipe.content.embeddings import Embeddings, check_unique, content_keys, digest, text_space
from recpipe.content.pretrained import (
    DTYPES,
    check_weights,
    choose_device,
    choose_precision,
    fingerprint,
    loading,
    model_folder,
    read_json,
)
from recpipe.content.vector_cache import Positions, VectorCache, embed_missing

log = logging.getLogger(__name__)

AT_ONCE = 8192  # texts per call of the tokeniser, whose own objects are large
BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}  # on a CPU what is between two layers should stay in its cache
PADDING = 1 / 16  # of a batch, at most, that may be padding


@dataclass(frozen=True)
class Tokens:
    """Text i is ``flat[offsets[i] : offsets[i + 1]]``."""

    flat: NDArray[np.int32]
    offsets: NDArray[np.int64]
    cut: NDArray[np.bool_]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per text."""
        return np.diff(self.offsets)


def load_encoder(folder: Path, *, pooling: str, normalise: bool, precision: str, device: str) -> TextEncoder:
    """From safetensors. Raises ValueError where a file cannot be used or a weight is missing: none is made up."""
    from transformers import AutoTokenizer

    with loading(folder, "a text encoder"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    model = _model(folder, DTYPES[precision])
    dense = [_dense(part) for part in dense_folders(folder)] if pooling == "mean_dense" else []
    if pooling == "mean_dense" and not dense:
        raise ValueError(f"{folder} lacks 2_Dense, which pooling mean_dense applies: set `pooling: mean`")
    if not tokenizer.is_fast:
        raise ValueError(
            f"{folder} has no tokenizer.json: save its tokenizer with transformers' save_pretrained"
        )
    return TextEncoder(tokenizer, model, nn.Sequential(*dense), pooling, normalise, torch.device(device))


class TextEncoder:
    """``encode`` gives the same vector for a text whatever texts come with it."""

    def __init__(
        self,
        tokenizer: Any,
        model: nn.Module,
        dense: nn.Module,
        pooling: str,
        normalise: bool,
        device: torch.device,
    ) -> None:
        self._tokenizer, self._pooling, self._normalise, self._device = tokenizer, pooling, normalise, device
        self._model, self._dense = model.to(device).eval(), dense.to(device).eval()
        self._pad = tokenizer.pad_token_id or 0

    def tokenise(self, texts: list[str], max_length: int) -> Tokens:
        """With the model's special tokens; longer texts are cut."""
        fast = self._tokenizer.backend_tokenizer
        fast.no_padding()
        fast.enable_truncation(max_length)
        unknown = [self._tokenizer.unk_token_id or self._pad]  # for a text of which nothing is left
        flat, lengths, cut = [np.zeros(0, np.int32)], [], []
        for start in range(0, len(texts), AT_ONCE):
            encoded = fast.encode_batch(texts[start : start + AT_ONCE])
            ids = [one.ids or unknown for one in encoded]
            flat += [np.array(row, np.int32) for row in ids]
            lengths += [len(row) for row in ids]
            cut += [len(one) == max_length and bool(one.overflowing) for one in encoded]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Tokens(np.concatenate(flat), offsets, np.array(cut, bool))

    @torch.inference_mode()
    def encode(
        self, tokens: Tokens, batch_tokens: int | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yields texts' numbers (B,) and vectors (B, D), the longest first."""
        budget = batch_tokens or BATCH_TOKENS.get(self._device.type, 8192)
        for rows in batches(tokens.lengths, budget):
            ids_BT, mask_BT = self._padded(tokens, rows)
            hidden_BTD = self._model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
            vectors_BD = self._dense(pooled(hidden_BTD, mask_BT, self._pooling))
            if self._normalise:
                vectors_BD = nn.functional.normalize(vectors_BD, dim=-1)
            yield rows, vectors_BD.cpu().numpy()

    def _padded(self, tokens: Tokens, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        """Ids and mask (B, T), padded to the right; no mask if all are of one length."""
        lengths = tokens.lengths[rows]
        time = np.arange(lengths.max())
        there = time < lengths[:, None]
        at = np.where(there, tokens.offsets[rows][:, None] + time, 0)
        ids = torch.from_numpy(np.where(there, tokens.flat[at], self._pad).astype(np.int64))
        mask = None if there.all() else torch.from_numpy(there.astype(np.int64)).to(self._device)
        return ids.to(self._device), mask


def batches(lengths: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Rows in batches of at most ``budget`` tokens, padding included, and hardly any padding; the longest first.

    A batch takes texts of one length; only if they are few, shorter ones too.
    """
    order = np.argsort(-lengths, kind="stable")
    shorter = -lengths[order]  # ascending, for searchsorted
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        most = start + max(budget // max(longest, 1), 1)
        same = int(np.searchsorted(shorter, -longest, side="right"))
        near = int(np.searchsorted(shorter, -longest * (1 - PADDING), side="right"))
        stop = min(same if 2 * (same - start) >= most - start else near, most)
        yield order[start:stop]
        start = stop


def pooled(hidden_BTD: Tensor, mask_BT: Tensor | None, pooling: str) -> Tensor:
    """One fp32 vector per text (B, D): of all its tokens, of the first, or of the last."""
    if pooling == "cls":
        return hidden_BTD[:, 0].float()
    if pooling == "last":
        last = -1 if mask_BT is None else mask_BT.sum(1) - 1
        return hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), last].float()
    if mask_BT is None:
        return hidden_BTD.float().mean(1)
    return (hidden_BTD.float() * mask_BT.unsqueeze(-1)).sum(1) / mask_BT.sum(1, keepdim=True)


def dense_folders(folder: Path) -> list[Path]:
    """``2_Dense``, ``3_Dense`` …, in order."""
    return sorted(path for path in folder.glob("[0-9]_Dense") if path.is_dir())


def _dense(folder: Path) -> nn.Module:
    with loading(folder, "a dense layer"):
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")
        activation = str(described.get("activation_function", "")).rsplit(".", 1)[-1]
        layer = nn.Linear(described["in_features"], described["out_features"], bias="linear.bias" in weights)
        layer.load_state_dict(
            {name.removeprefix("linear."): tensor.float() for name, tensor in weights.items()}
        )
    if activation not in ("Identity", "Tanh"):
        raise ValueError(f"{folder} ends in activation {activation!r}; known are Identity and Tanh")
    return nn.Sequential(layer, getattr(nn, activation)())


def _model(folder: Path, dtype: torch.dtype) -> nn.Module:
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

    with loading(folder, "a text encoder"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    encoder_only = (
        config.model_type in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
    )  # such as T5 without its decoder
    if config.is_encoder_decoder and not encoder_only:
        raise ValueError(f"{folder} holds a {config.model_type} model, which has no encoder of its own")
    with loading(folder, "a text encoder"):
        model, report = (AutoModelForTextEncoding if encoder_only else AutoModel).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, and refused below by name
        )
    check_weights(folder, report, of=config.model_type, needless="pooler.")
    return model


POOLINGS = ("mean", "cls", "last", "mean_dense")
LENGTH = 512  # tokens, where neither conf nor model says


@dataclass(frozen=True)
class TextEncoderConfig:
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
    config: TextEncoderConfig,
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


def resolved(config: TextEncoderConfig, folder: Path) -> TextEncoderConfig:
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
    keys: NDArray[np.object_], texts: list[str], config: TextEncoderConfig, folder: Path, cache_folder: Path
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
    keys: NDArray[np.object_], texts: list[str], config: TextEncoderConfig, folder: Path, counts: VectorCache
) -> Callable[[Positions], Iterator[tuple[Positions, NDArray[np.float32]]]]:
    def compute(positions: Positions) -> Iterator[tuple[Positions, NDArray[np.float32]]]:
        encoder = load_encoder(
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


def _encoder_space(config: TextEncoderConfig, folder: Path) -> str:
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
    return "mean_dense" if pooling == "mean" and dense_folders(folder) else pooling


def _described(
    config: TextEncoderConfig, template: str, keys: NDArray[np.object_], tokens: dict[str, int]
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
