"""Text embeddings by a pretrained encoder; only texts that are not in the cache are encoded.

Shape letters: N items, B texts of a batch, T tokens, D width.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from recpipe.config import check_at_least
from recpipe.content import pretrained
from recpipe.content.embeddings import Embeddings, check_items, content_keys, digest, text_space
from recpipe.content.vector_cache import Positions, VectorCache, embed_missing

log = logging.getLogger(__name__)

POOLINGS = ("mean", "cls", "last", "mean_dense")
DEFAULT_LENGTH = 512  # tokens, where neither conf nor model says
TOKENISER_BATCH = 8192  # texts per call of the tokeniser, whose objects need much memory
BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}  # on a CPU, activations between two layers should fit its cache
MAX_PADDING = 1 / 16  # of a batch


@dataclass(frozen=True)
class TextEncoderConfig:
    """Settings of an encoder of ``text_encoders``; null means: from the model's sentence-transformers files.

    source: hub name or local folder.
    pooling: mean, cls, last (token), or mean_dense (mean, then the model's ``*_Dense`` layers, as in sentence-T5).
    batch_tokens: tokens of a batch with padding; null for a default of the device.
    """

    source: str
    pooling: str | None = "mean"
    prefix: str = ""
    normalise: bool = True
    max_length: int | None = 256
    precision: str = "auto"
    device: str = "auto"
    batch_tokens: int | None = None
    revision: str | None = None  # branch, tag or commit on the hub

    def __post_init__(self) -> None:
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise ValueError(f"pooling is {self.pooling!r}; allowed: {', '.join(POOLINGS)}, null")
        check_at_least(3, self, "max_length")
        check_at_least(1, self, "batch_tokens")


def embed_texts(
    item_ids: Sequence[str],
    texts: Sequence[str | None],
    config: TextEncoderConfig,
    *,
    cache_folder: Path,
    template: str = "",
) -> Embeddings:
    """Embed a text per item, none where it is null or blank; equal texts are encoded once.

    ``template``, the origin of the texts, is part of the vector space. The precision is not, so that a laptop and a GPU
    share a space, but each precision has its cache. Raises ValueError for repeated ids and for an encoder that is
    incomplete, needs custom code or cannot be downloaded.
    """
    check_items(item_ids, texts, "texts")
    stripped = [text.strip() or None if text is not None else None for text in texts]
    folder = pretrained.model_folder(config.source, revision=config.revision)
    config = resolve_config(config, folder)
    settings = config.pooling, config.prefix, config.normalise, config.max_length
    encoder = digest("encoder", 1, pretrained.fingerprint(folder), *settings)
    keys = content_keys(encoder, stripped)
    present = keys != ""
    vectors, counts = _cached_vectors(keys[present], [text for text in stripped if text], config, folder, cache_folder)
    out = np.zeros((len(keys), vectors.shape[1]), np.float32)
    out[present] = vectors
    about = {
        "modality": "text",
        "template": template,
        "encoder": {key: value for key, value in asdict(config).items() if key not in ("device", "batch_tokens")},
        "items": len(keys),
        "without_text": int((~present).sum()),
        "distinct_texts": len(set(keys.tolist()) - {""}),
        **counts,
        "fingerprint": encoder,
    }
    if about["without_text"]:
        log.info("%s of %s items have no text", f"{about['without_text']:,}", f"{about['items']:,}")
    if counts.get("cut"):
        log.info("%s texts are longer than %s tokens and were cut", f"{counts['cut']:,}", config.max_length)
    return Embeddings(np.array(item_ids, dtype=object), out, present, keys, text_space(encoder, template), about)


def resolve_config(config: TextEncoderConfig, folder: Path) -> TextEncoderConfig:
    """Replace null and auto by values. Raises ValueError for a length above the model's number of positions."""
    device = pretrained.choose_device(config.device)
    limit, path = _max_positions(folder), folder / "sentence_bert_config.json"
    model_length = pretrained.read_json(path).get("max_seq_length") if path.is_file() else None
    length = config.max_length or model_length or min(limit or DEFAULT_LENGTH, DEFAULT_LENGTH)
    if limit is not None and length > limit:
        raise ValueError(f"max_length is {length}; {config.source} reads at most {limit} tokens: lower it")
    return replace(
        config,
        pooling=config.pooling or _sentence_pooling(folder),
        max_length=length,
        precision=pretrained.choose_precision(config.precision, device),
        device=str(device),
    )


def _cached_vectors(
    keys: NDArray[np.object_], texts: list[str], config: TextEncoderConfig, folder: Path, cache_folder: Path
) -> tuple[NDArray[np.float32], dict[str, int]]:
    """Return vectors (N, D), and the numbers of tokens and of cut texts."""
    if not len(keys):
        log.warning("no item has a text: there is nothing to embed")
        return np.zeros((0, 0), np.float32), {}
    counts = VectorCache(cache_folder / "tokens", 2)  # per text: number of tokens, whether it was cut

    def compute(positions: Positions) -> Iterator[tuple[Positions, NDArray[np.float32]]]:
        encoder = load_encoder(folder, config)
        tokens = encoder.tokenise([config.prefix + texts[at] for at in positions], config.max_length or DEFAULT_LENGTH)
        counts.add(keys[positions], np.stack([tokens.lengths, tokens.cut], axis=1).astype(np.float32))
        for at, vectors in encoder.encode(tokens, config.batch_tokens):
            yield positions[at], vectors

    cache = VectorCache(cache_folder / config.precision)
    is_present, vectors = embed_missing(keys, compute, cache, label="embed texts")
    assert is_present.all()
    counts.tidy()
    tokens, cut = counts.get(keys)[1].sum(axis=0, dtype=np.int64).tolist()
    return vectors, {"tokens": tokens, "cut": cut}


@dataclass(frozen=True)
class Tokens:
    """Tokens of all texts; text i is ``flat[offsets[i] : offsets[i + 1]]``."""

    flat: NDArray[np.int32]
    offsets: NDArray[np.int64]
    cut: NDArray[np.bool_]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each text (N,)."""
        return np.diff(self.offsets)


def load_encoder(folder: Path, config: TextEncoderConfig) -> TextEncoder:
    """Load a resolved encoder. Raises ValueError for an unusable file and a missing weight."""
    from transformers import AutoTokenizer

    with pretrained.quiet_loading(folder, "a text encoder"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    model = _load_model(folder, pretrained.DTYPES[config.precision])
    dense = [_load_dense(part) for part in _dense_folders(folder)] if config.pooling == "mean_dense" else []
    if config.pooling == "mean_dense" and not dense:
        raise ValueError(f"{folder} lacks 2_Dense, which pooling mean_dense applies: set `pooling: mean`")
    if not tokenizer.is_fast:
        raise ValueError(f"{folder} has no tokenizer.json: save its tokenizer with transformers' save_pretrained")
    return TextEncoder(tokenizer, model, nn.Sequential(*dense), config)


class TextEncoder:
    """Text encoder whose vector of a text does not depend on the other texts of a batch."""

    def __init__(self, tokenizer: Any, model: nn.Module, dense: nn.Module, config: TextEncoderConfig) -> None:
        self._tokenizer, self._config, self._device = tokenizer, config, torch.device(config.device)
        self._model, self._dense = model.to(self._device).eval(), dense.to(self._device).eval()
        self._pad = tokenizer.pad_token_id or 0

    def tokenise(self, texts: list[str], max_length: int) -> Tokens:
        """Convert texts to tokens with the model's special tokens; longer texts are cut."""
        tokenizer = self._tokenizer.backend_tokenizer
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        unknown = [self._tokenizer.unk_token_id or self._pad]  # for a text without tokens
        flat, lengths, cut = [np.zeros(0, np.int32)], [], []
        for start in range(0, len(texts), TOKENISER_BATCH):
            encodings = tokenizer.encode_batch(texts[start : start + TOKENISER_BATCH])
            ids = [encoding.ids or unknown for encoding in encodings]
            flat += [np.array(row, np.int32) for row in ids]
            lengths += [len(row) for row in ids]
            cut += [len(encoding) == max_length and bool(encoding.overflowing) for encoding in encodings]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Tokens(np.concatenate(flat), offsets, np.array(cut, bool))

    @torch.inference_mode()
    def encode(
        self, tokens: Tokens, batch_tokens: int | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield indices of texts (B,) and vectors (B, D), the longest texts first."""
        budget = batch_tokens or BATCH_TOKENS.get(self._device.type, 8192)
        for rows in length_batches(tokens.lengths, budget):
            ids_BT, mask_BT = self._pad_batch(tokens, rows)
            hidden_BTD = self._model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
            vectors_BD = self._dense(_pool(hidden_BTD, mask_BT, self._config.pooling))
            if self._config.normalise:
                vectors_BD = nn.functional.normalize(vectors_BD, dim=-1)
            yield rows, vectors_BD.cpu().numpy()

    def _pad_batch(self, tokens: Tokens, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        """Return ids and mask (B, T), padded to the right; no mask if all texts have the same length."""
        lengths = tokens.lengths[rows]
        time = np.arange(lengths.max())
        mask_BT = time < lengths[:, None]
        at = np.where(mask_BT, tokens.offsets[rows][:, None] + time, 0)
        ids = torch.from_numpy(np.where(mask_BT, tokens.flat[at], self._pad).astype(np.int64))
        mask = None if mask_BT.all() else torch.from_numpy(mask_BT.astype(np.int64)).to(self._device)
        return ids.to(self._device), mask


def length_batches(lengths: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Yield rows (B,) in batches of at most ``budget`` tokens with padding, the longest first.

    ``lengths`` (N,) are the tokens of each text. A batch has texts of one length; if they fill less than half of it,
    slightly shorter ones too.
    """
    order = np.argsort(-lengths, kind="stable")
    ascending = -lengths[order]
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        limit = start + max(budget // max(longest, 1), 1)
        same = int(np.searchsorted(ascending, -longest, side="right"))
        near = int(np.searchsorted(ascending, -longest * (1 - MAX_PADDING), side="right"))
        stop = min(same if 2 * (same - start) >= limit - start else near, limit)
        yield order[start:stop]
        start = stop


def _pool(hidden_BTD: Tensor, mask_BT: Tensor | None, pooling: str | None) -> Tensor:
    """Return a vector per text (B, D) in fp32: of the first token, of the last, or the mean of all."""
    if pooling == "cls":
        return hidden_BTD[:, 0].float()
    if pooling == "last":
        last = -1 if mask_BT is None else mask_BT.sum(1) - 1
        return hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), last].float()
    if mask_BT is None:
        return hidden_BTD.float().mean(1)
    return (hidden_BTD.float() * mask_BT.unsqueeze(-1)).sum(1) / mask_BT.sum(1, keepdim=True)


def _dense_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]_Dense") if path.is_dir())


def _load_dense(folder: Path) -> nn.Module:
    with pretrained.quiet_loading(folder, "a dense layer"):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")
        activation = str(config.get("activation_function", "")).rsplit(".", 1)[-1]
        layer = nn.Linear(config["in_features"], config["out_features"], bias="linear.bias" in weights)
        layer.load_state_dict({name.removeprefix("linear."): tensor.float() for name, tensor in weights.items()})
    if activation not in ("Identity", "Tanh"):
        raise ValueError(f"{folder} ends in activation {activation!r}; allowed: Identity, Tanh")
    return nn.Sequential(layer, getattr(nn, activation)())


def _load_model(folder: Path, dtype: str) -> nn.Module:
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

    with pretrained.quiet_loading(folder, "a text encoder"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    has_text_encoder = config.model_type in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES  # T5 without its decoder
    if config.is_encoder_decoder and not has_text_encoder:
        raise ValueError(f"{folder} holds a {config.model_type} model, which has no encoder of its own")
    with pretrained.quiet_loading(folder, "a text encoder"):
        model, report = (AutoModelForTextEncoding if has_text_encoder else AutoModel).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported by check_weights with their names
        )
    pretrained.check_weights(folder, report, part=config.model_type, ignore="pooler.")
    return model


def _max_positions(folder: Path) -> int | None:
    """Return the number of learned positions; None for a model without them, such as one with rotary ones."""
    config = pretrained.read_json(folder / "config.json")
    positions = config.get("max_position_embeddings")
    if not positions or "rope_theta" in config or "rope_parameters" in config:
        return None
    is_roberta = config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet")
    return positions - 2 if is_roberta else positions  # they number positions from the padding index on


def _sentence_pooling(folder: Path) -> str:
    path = folder / "1_Pooling" / "config.json"
    config: dict[str, Any] = pretrained.read_json(path) if path.is_file() else {"pooling_mode_mean_tokens": True}
    if "pooling_mode" in config:  # sentence-transformers 6
        modes, names = [str(config["pooling_mode"])], {"mean": "mean", "cls": "cls", "lasttoken": "last"}
    else:
        modes = sorted(name for name, value in config.items() if name.startswith("pooling_mode_") and value is True)
        names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}
    if len(modes) != 1 or modes[0] not in names:
        raise ValueError(f"{path} pools by {', '.join(modes)}: set `pooling` to one of {', '.join(POOLINGS)}")
    pooling = names[modes[0]]
    return "mean_dense" if pooling == "mean" and _dense_folders(folder) else pooling
