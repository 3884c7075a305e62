"""Text embeddings by TF-IDF and SVD, for machines that cannot run an encoder.

The fitted state is stored, so that vectors of earlier items stay the same when new items arrive.
Shape letters: N items, V terms, D width.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recpipe.config import check_at_least, check_choices
from recpipe.content.embeddings import Embeddings, check_items, content_keys, digest, unit_rows
from recpipe.data.atomic import atomic_folder, recover
from recpipe.data.digests import verify_folder, write_manifest

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

log = logging.getLogger(__name__)

ANALYSERS: dict[str, dict[str, Any]] = {
    "word": {"analyzer": "word", "token_pattern": r"(?u)\b\w+\b", "ngram_range": (1, 2)},
    "char": {"analyzer": "char_wb", "ngram_range": (2, 4)},  # for scripts that put no blanks between words
}
STATE, CONFIG, VOCABULARY, TENSORS = "state", "config.json", "vocabulary.json", "state.safetensors"


@dataclass(frozen=True)
class TfidfConfig:
    """Settings of an encoder of ``kind: tfidf``.

    ngrams: word or char. min_count: texts that a term must occur in. max_features: number of terms, the most frequent.
    """

    width: int = 256
    ngrams: str = "word"
    min_count: int = 2
    max_features: int = 50_000

    def __post_init__(self) -> None:
        check_choices(self, ngrams=ANALYSERS)
        check_at_least(1, self, "width", "min_count", "max_features")


@dataclass(frozen=True)
class TfidfState:
    """Fitted vocabulary, inverse document frequencies and SVD components."""

    vocabulary: list[str]  # (V,)
    idf_V: NDArray[np.float32]
    components_DV: NDArray[np.float32]

    @property
    def hash(self) -> str:
        """Hash of all values."""
        arrays = [hashlib.sha256(array.tobytes()).hexdigest() for array in (self.idf_V, self.components_DV)]
        return digest("tfidf", 1, self.vocabulary, self.components_DV.shape, arrays)


def embed_tfidf(
    item_ids: Sequence[str],
    texts: Sequence[str | None],
    config: TfidfConfig,
    *,
    state_folder: Path,
    seed: int = 0,
    template: str = "",
    refit: bool = False,
) -> Embeddings:
    """Embed a text per item with unit length; none for a text that is null or has no term of the vocabulary.

    Fits only with ``refit``, or if ``state_folder`` has no state of the same config, seed and template. Raises
    ValueError for repeated ids and if no term is frequent enough.
    """
    check_items(item_ids, texts, "texts")
    has_text = np.array([bool(text and text.strip()) for text in texts], bool)
    non_empty = [text for text in texts if text and text.strip()]
    settings = {"format": 1, **asdict(config), "seed": seed, "template": template}
    folder = Path(state_folder) / STATE
    state = None if refit else _read(folder, settings)
    if state is None and non_empty:
        state = _fit(non_empty, config, seed)
        with atomic_folder(folder) as temporary:
            (temporary / CONFIG).write_text(json.dumps(settings, indent=2))
            (temporary / VOCABULARY).write_text(json.dumps(state.vocabulary, ensure_ascii=False), encoding="utf-8")
            save_file({"idf": state.idf_V, "components": state.components_DV}, temporary / TENSORS)
            write_manifest(temporary)
    width = len(state.components_DV) if state else 0
    vectors = np.zeros((len(texts), width), np.float32)
    if state and non_empty:
        vectorizer = _vectorizer(config, vocabulary={term: i for i, term in enumerate(state.vocabulary)})
        vectorizer.idf_ = state.idf_V
        vectors[has_text] = unit_rows(vectorizer.transform(non_empty) @ state.components_DV.T)
    present: NDArray[np.bool_] = np.asarray(vectors.any(axis=1))
    space = digest("tfidf", state.hash if state else "", settings)
    keys = content_keys(space, [text if p else None for text, p in zip(texts, present, strict=True)])
    about = {
        "modality": "text",
        "template": template,
        "encoder": {"source": "tfidf", **asdict(config), "width": width},
        "items": len(texts),
        "without_text": int((~has_text).sum()),
        "without_known_term": int((has_text & ~present).sum()),
        "terms": len(state.vocabulary) if state else 0,
    }
    if count := about["without_known_term"]:
        log.warning("%s texts have no term of the vocabulary and get no vector", f"{count:,}")
    return Embeddings(np.array(item_ids, dtype=object), vectors, present, keys, space, about)


def _fit(texts: list[str], config: TfidfConfig, seed: int) -> TfidfState:
    from sklearn.decomposition import TruncatedSVD

    vectorizer = _vectorizer(config, min_df=min(config.min_count, len(texts)), max_features=config.max_features)
    try:
        x_NV = vectorizer.fit_transform(texts)
    except ValueError as error:
        raise ValueError(
            f"TF-IDF finds no term that occurs in {config.min_count} of {len(texts):,} texts: lower min_count, or take "
            "`ngrams: char`"
        ) from error
    width = min(config.width, *x_NV.shape)
    if width < config.width:
        log.warning("%s texts of %s terms allow a width of %s, not %s", *x_NV.shape, width, config.width)
    components = np.ones((1, 1))  # TruncatedSVD needs two terms
    if x_NV.shape[1] > 1:
        with np.errstate(invalid="ignore"):  # it divides by the variance, which is 0 for one text
            components = TruncatedSVD(width, random_state=seed).fit(x_NV).components_
    names = [str(term) for term in vectorizer.get_feature_names_out()]
    return TfidfState(names, vectorizer.idf_.astype(np.float32), np.ascontiguousarray(components, np.float32))


def _vectorizer(config: TfidfConfig, **settings: object) -> TfidfVectorizer:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(**ANALYSERS[config.ngrams], **settings, sublinear_tf=True, dtype=np.float32)


def _read(folder: Path, settings: dict[str, Any]) -> TfidfState | None:
    """Read the state that was fitted with these settings, None if there is none."""
    recover(folder)
    if not folder.is_dir():
        return None
    try:
        verify_folder(folder)
        if json.loads((folder / CONFIG).read_text()) != settings:
            log.info("TF-IDF is fitted again: its settings changed")
            return None
        vocabulary = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
        return TfidfState(vocabulary, tensors["idf"], tensors["components"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        log.warning("%s is damaged (%s): TF-IDF is fitted again", folder, error)
        return None
