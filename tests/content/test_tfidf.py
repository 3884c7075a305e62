"""TF-IDF and SVD: equal to scikit-learn's, stable when items arrive, any script."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from recpipe.content import tfidf
from recpipe.content.tfidf import TfidfConfig, embed_tfidf

CONFIG = TfidfConfig(width=8, min_count=1)


def corpus(n: int = 60) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice([f"w{i}" for i in range(40)], 6)) for _ in range(n)]


def embed(texts: list[str | None], folder: Path, config: TfidfConfig = CONFIG, **options: Any) -> Any:
    return embed_tfidf([f"i{n}" for n in range(len(texts))], texts, config, state_folder=folder, **options)


def test_equals_scikit_learn(tmp_path: Path) -> None:
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", ngram_range=(1, 2), sublinear_tf=True)
    peer = TruncatedSVD(8, random_state=3).fit_transform(vectorizer.fit_transform(corpus()))
    peer /= np.linalg.norm(peer, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(corpus(), tmp_path, seed=3).vectors, peer, atol=1e-4)


def test_known_items_keep_their_vectors_when_others_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = embed(corpus(), tmp_path)
    monkeypatch.setattr(tfidf, "_fit", None)
    later = embed([*corpus(), "w1 w2 new", "w3"], tmp_path)
    np.testing.assert_array_equal(later.vectors[:60], first.vectors)
    assert later.space == first.space and later.present.all()
    assert later.keys[:60].tolist() == first.keys.tolist()


@pytest.mark.parametrize("change", ["width", "seed", "template", "refit", "harmed"])
def test_fitted_anew_only_for_a_reason(change: str, tmp_path: Path) -> None:
    first = embed(corpus(), tmp_path)
    config, options = CONFIG, dict[str, Any]()
    if change == "width":
        config = replace(CONFIG, width=7)
    elif change == "harmed":
        state = tmp_path / tfidf.STATE / tfidf.TENSORS
        state.write_bytes(state.read_bytes()[:-5])
    else:
        options = {change: {"seed": 1, "template": "{title}", "refit": True}[change]}
    again = embed([*corpus(), "quite new words"], tmp_path, config, **options)
    assert again.present[-1], "a new fit knows the new words"
    assert again.space != first.space


def test_no_pickle_on_disk(tmp_path: Path) -> None:
    embed(corpus(), tmp_path)
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


@pytest.mark.parametrize(
    ("texts", "width"), [(["one text only"], 1), (["a b", "b c", "c d"], 3), (["same", "same"], 1)]
)
def test_width_shrinks_with_few_items_or_terms(
    texts: list[str], width: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        embeddings = embed(texts, tmp_path)
    assert embeddings.vectors.shape == (len(texts), width) and f"width of {width}, not 8" in caplog.text
    np.testing.assert_allclose(np.linalg.norm(embeddings.vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("ngrams", ["word", "char"])
def test_other_scripts(ngrams: str, tmp_path: Path) -> None:
    texts = ["шампунь для волос", "シャンプー 詰め替え", "شامبو للشعر", "шампунь детский", "시원한 샴푸"]
    embeddings = embed(texts, tmp_path, replace(CONFIG, ngrams=ngrams, width=4))
    similar = embeddings.vectors @ embeddings.vectors.T
    assert embeddings.present.all() and np.argsort(-similar[0])[1] == 3


def test_character_ngrams_see_parts_of_unbroken_text(tmp_path: Path) -> None:
    texts = ["深层清洁洗发水", "滋养洗发水", "口红套装", "哑光口红"]
    embeddings = embed(texts, tmp_path, TfidfConfig(width=3, ngrams="char", min_count=1))
    similar = embeddings.vectors @ embeddings.vectors.T
    assert similar[0, 1] > similar[0, 2] and similar[2, 3] > similar[1, 3]


def test_items_without_text_or_known_terms_are_masked(tmp_path: Path) -> None:
    embed(corpus(), tmp_path)
    embeddings = embed(["w1", None, "  ", "unheard"], tmp_path)
    assert embeddings.present.tolist() == [True, False, False, False]
    assert (embeddings.about["without_text"], embeddings.about["without_known_term"]) == (2, 1)


def test_no_text_at_all(tmp_path: Path) -> None:
    embeddings = embed([None, ""], tmp_path)
    assert embeddings.vectors.shape == (2, 0) and not embeddings.present.any() and not list(tmp_path.iterdir())


def test_rare_terms_only_name_min_count(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="occurs in 2 of 3.*lower min_count"):
        embed(["a", "b", "c"], tmp_path, TfidfConfig(min_count=2))


def test_duplicate_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'a'"):
        embed_tfidf(["a", "a"], ["x", "y"], CONFIG, state_folder=tmp_path)


@pytest.mark.parametrize("setting", [{"ngrams": "syllable"}, {"width": 0}, {"min_count": 0}, {"max_features": 0}])
def test_wrong_settings_are_named(setting: dict[str, Any]) -> None:
    name, value = next(iter(setting.items()))
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        TfidfConfig(**setting)
