"""Text vectors: equal to sentence-transformers', independent of the batch, computed once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertModel, T5EncoderModel

from recpipe.content import text_embeddings
from recpipe.content.pretrained import model_folder
from recpipe.content.text_embeddings import TextEncoder, TextEncoderConfig, embed_texts, length_batches

MINILM = TextEncoderConfig("sentence-transformers/all-MiniLM-L6-v2", precision="fp32")
WORDS = ["one", "two words", "a, b. c", "Zebra", "x" * 30, "one two three four five six seven", "a", "bb", "b b"]
WORDS += ["u" * 27, "v" * 28, "w" * 29]  # near enough in length to share a padded batch
REAL = [
    "OPI Nail Lacquer, Simmer and Shimmer, 0.5-Fluid Ounce",
    "Shampoo",
    "Toy Story (1995). Animation, Children's, Comedy",
    "シャンプー 詰め替え用 400ml",
    "Тушь для ресниц чёрная",
    "شامبو للشعر الجاف",
    "💄💅",
    "naïve café",
    "word " * 400,
    *(f"item {'very ' * n}good" for n in range(30)),
]


def ids(texts: list[Any]) -> list[str]:
    return [f"i{n}" for n in range(len(texts))]


def embed(texts: list[str | None], config: TextEncoderConfig, folder: Path, **options: Any) -> Any:
    return embed_texts(ids(texts), texts, config, cache_folder=folder, **options)


@pytest.fixture
def tiny(bert_folder: Path) -> TextEncoderConfig:
    return TextEncoderConfig(str(bert_folder), max_length=32, precision="fp32", device="cpu")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that are encoded."""
    seen, tokenise = list[str](), TextEncoder.tokenise

    def record(self: TextEncoder, texts: list[str], max_length: int) -> Any:
        seen.extend(texts)
        return tokenise(self, texts, max_length)

    monkeypatch.setattr(TextEncoder, "tokenise", record)
    return seen


@pytest.fixture
def no_encoder(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it, and from then on no encoder can be loaded."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an encoder was loaded")

    return lambda: monkeypatch.setattr(text_embeddings, "load_encoder", refuse)


def test_equals_sentence_transformers(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(model_folder(MINILM.source)), device="cpu")
    ours = embed(REAL, MINILM, tmp_path)
    np.testing.assert_allclose(ours.vectors, peer.encode(REAL, show_progress_bar=False), atol=1e-4)
    assert ours.about["cut"] == 1 and ours.present.all()


def test_bf16_is_near_and_the_same_space(tmp_path: Path) -> None:
    half = embed(REAL, replace(MINILM, precision="bf16"), tmp_path)
    full = embed(REAL, MINILM, tmp_path)
    assert (half.vectors * full.vectors).sum(axis=1).min() > 0.999
    assert half.space == full.space and np.abs(half.vectors - full.vectors).max() > 0


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("normalise", [True, False])
def test_pooling_against_one_text_at_a_time(
    pooling: str, normalise: bool, tiny: TextEncoderConfig, bert_folder: Path, tmp_path: Path
) -> None:
    model, tokenizer = (BertModel.from_pretrained(bert_folder).eval(), AutoTokenizer.from_pretrained(bert_folder))
    expected = []
    for text in WORDS:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        vector = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling]
        expected.append((vector / vector.norm() if normalise else vector).numpy())
    ours = embed(WORDS, replace(tiny, pooling=pooling, normalise=normalise), tmp_path)
    np.testing.assert_allclose(ours.vectors, expected, atol=1e-5)


@pytest.fixture
def dense_t5(t5_folder: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(t5_folder, tmp_path / "t5"))
    (folder / "2_Dense").mkdir()
    described = {"in_features": 32, "out_features": 24, "bias": False}
    described["activation_function"] = "torch.nn.modules.linear.Identity"
    (folder / "2_Dense" / "config.json").write_text(json.dumps(described))
    weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(1))
    save_file({"linear.weight": weight}, folder / "2_Dense" / "model.safetensors")
    return folder


def test_sentence_t5_uses_the_encoder_only(dense_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = (T5EncoderModel.from_pretrained(dense_t5).eval(), AutoTokenizer.from_pretrained(dense_t5))
    weight = load_file(dense_t5 / "2_Dense" / "model.safetensors")["linear.weight"]
    expected = []
    for text in WORDS:
        with torch.no_grad():
            hidden = model(tokenizer(text, return_tensors="pt")["input_ids"]).last_hidden_state[0]
        expected.append(torch.nn.functional.normalize(weight @ hidden.mean(0), dim=0).numpy())
    loaded, load = [], text_embeddings._load_model
    monkeypatch.setattr(text_embeddings, "_load_model", lambda *args: loaded.append(load(*args)) or loaded[0])
    config = TextEncoderConfig(str(dense_t5), pooling="mean_dense", max_length=32, precision="fp32", device="cpu")
    ours = embed(WORDS, config, tmp_path / "cache")
    np.testing.assert_allclose(ours.vectors, expected, atol=1e-5)
    assert type(loaded[0]) is T5EncoderModel and ours.width == 24


def test_mean_dense_without_dense_is_refused(tiny: TextEncoderConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks 2_Dense.*pooling: mean"):
        embed(WORDS, replace(tiny, pooling="mean_dense"), tmp_path)


def test_vector_does_not_depend_on_the_batch(tiny: TextEncoderConfig, tmp_path: Path) -> None:
    texts = [*WORDS, *(f"{'ab ' * n}c" for n in range(25))]
    alone = np.concatenate([embed([text], tiny, tmp_path / str(n)).vectors for n, text in enumerate(texts)])
    for budget in (1, 40, 100, 100_000):
        together = embed(texts, replace(tiny, batch_tokens=budget), tmp_path / f"budget {budget}")
        np.testing.assert_allclose(together.vectors, alone, atol=1e-5)


@given(st.lists(st.integers(1, 300), max_size=200), st.integers(1, 5000))
def test_batches_hold_every_row_once_and_little_padding(lengths: list[int], budget: int) -> None:
    array = np.array(lengths, np.int64)
    parts = list(length_batches(array, budget))
    assert sorted(np.concatenate(parts).tolist() if parts else []) == list(range(len(lengths)))
    for rows in parts:
        longest = array[rows].max()
        assert len(rows) == 1 or longest * len(rows) <= budget
        assert array[rows].min() >= longest * (1 - text_embeddings.MAX_PADDING)


def test_nothing_changed_loads_no_encoder(tiny: TextEncoderConfig, tmp_path: Path, no_encoder: Any) -> None:
    first = embed([*WORDS, None], tiny, tmp_path)
    no_encoder()
    again = embed([*WORDS, None], tiny, tmp_path)
    np.testing.assert_array_equal(again.vectors, first.vectors)
    assert again.hash == first.hash and again.about == first.about


def test_one_changed_item_is_embedded_alone(tiny: TextEncoderConfig, tmp_path: Path, encoded: list[str]) -> None:
    first = embed(WORDS, tiny, tmp_path)
    encoded.clear()
    second = embed([*WORDS[:3], "changed", *WORDS[4:]], tiny, tmp_path)
    assert encoded == ["changed"]
    differing = (first.vectors != second.vectors).any(axis=1)
    assert np.flatnonzero(differing).tolist() == [3] and first.hash != second.hash


def test_order_of_items_does_not_matter(tiny: TextEncoderConfig, tmp_path: Path, no_encoder: Any) -> None:
    first = embed(WORDS, tiny, tmp_path)
    no_encoder()
    names = ids(WORDS)
    turned = embed_texts(names[::-1], WORDS[::-1], tiny, cache_folder=tmp_path)
    np.testing.assert_array_equal(turned.vectors[::-1], first.vectors)
    assert turned.hash == first.hash


def test_killed_run_goes_on(
    tiny: TextEncoderConfig, tmp_path: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = TextEncoder.encode

    def interrupt(self: TextEncoder, *arguments: Any) -> Iterator[Any]:
        for number, part in enumerate(encode(self, *arguments)):
            if number == 3:
                raise KeyboardInterrupt
            yield part

    config = replace(tiny, batch_tokens=1)  # a batch per text
    with monkeypatch.context() as patched:
        patched.setattr(TextEncoder, "encode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            embed(WORDS, config, tmp_path / "killed")
    encoded.clear()
    second = embed(WORDS, config, tmp_path / "killed")
    assert len(encoded) == len(WORDS) - 3
    complete = embed(WORDS, config, tmp_path / "whole")
    np.testing.assert_array_equal(second.vectors, complete.vectors)
    assert second.about == complete.about


def test_equal_texts_are_encoded_once(tiny: TextEncoderConfig, tmp_path: Path, encoded: list[str]) -> None:
    embeddings = embed(["same", "other", " same\n"], tiny, tmp_path)
    assert sorted(encoded) == ["other", "same"] and embeddings.about["distinct_texts"] == 2
    np.testing.assert_array_equal(embeddings.vectors[0], embeddings.vectors[2])


def test_items_without_text_are_masked(tiny: TextEncoderConfig, tmp_path: Path, encoded: list[str]) -> None:
    embeddings = embed([None, "a", "", " \t\n\u3000"], tiny, tmp_path)
    assert embeddings.present.tolist() == [False, True, False, False] and encoded == ["a"]
    assert not embeddings.vectors[~embeddings.present].any() and embeddings.about["without_text"] == 3


@pytest.mark.parametrize("texts", [[None, " "], []], ids=["blank", "no items"])
def test_no_text_at_all_needs_no_encoder(
    texts: list[str | None], tiny: TextEncoderConfig, tmp_path: Path, no_encoder: Any
) -> None:
    no_encoder()
    embeddings = embed(texts, tiny, tmp_path)
    assert embeddings.vectors.shape == (len(texts), 0) and not embeddings.present.any()


def test_long_text_is_cut_and_counted(tiny: TextEncoderConfig, tmp_path: Path) -> None:
    long = "ab " * 33_334
    embeddings = embed([long, "ab " * 15, "ab " * 15 + "c"], tiny, tmp_path)  # 30 letters and two special tokens fit
    assert len(long) > 100_000 and embeddings.about["cut"] == 2
    np.testing.assert_allclose(embeddings.vectors[0], embeddings.vectors[1], atol=1e-6)


def test_text_of_unknown_signs_only(tiny: TextEncoderConfig, tmp_path: Path) -> None:
    embeddings = embed(["漢字", "\u200b\ufeff", "🙂"], tiny, tmp_path)
    assert embeddings.present.all() and np.isfinite(embeddings.vectors).all()


def test_duplicate_ids_are_refused(tiny: TextEncoderConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'a'"):
        embed_texts(["a", "a"], ["x", "y"], tiny, cache_folder=tmp_path)


def test_one_text_per_item(tiny: TextEncoderConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 items and 1 texts"):
        embed_texts(["a", "b"], ["x"], tiny, cache_folder=tmp_path)


def damaged(folder: Path, place: Path, change: Any) -> TextEncoderConfig:
    copied = Path(shutil.copytree(folder, place))
    weights = load_file(copied / "model.safetensors")
    change(weights)
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    return TextEncoderConfig(str(copied), max_length=32, precision="fp32", device="cpu")


def test_encoder_that_gives_nan_is_refused(bert_folder: Path, tmp_path: Path) -> None:
    config = damaged(
        bert_folder, tmp_path / "nan", lambda weights: weights["embeddings.word_embeddings.weight"].fill_(np.nan)
    )
    with pytest.raises(ValueError, match="new vectors hold NaN"):
        embed(WORDS, config, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.safetensors"))


def test_missing_weight_is_not_made_up(bert_folder: Path, tmp_path: Path) -> None:
    name = "encoder.layer.1.output.dense.weight"
    config = damaged(bert_folder, tmp_path / "less", lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=f"lacks weights of bert: {name}"):
        embed(WORDS, config, tmp_path / "cache")


BAD = {
    "tokenizer of another kind": ("tokenizer.json", '{"version": "1.0", "model": 3}'),
    "cut tokenizer": ("tokenizer.json", '{"version"'),
    "settings that are none": ("config.json", '{"model_type": "bert", "hidden_size": "wide"}'),
    "unknown model": ("config.json", '{"model_type": "berd"}'),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_there_but_bad_are_one_sentence(name: str, bert_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bert_folder, tmp_path / "bad"))
    file, text = BAD[name]
    (folder / file).write_text(text)
    with pytest.raises(ValueError, match=f"{folder} cannot be loaded as a text encoder.*: .") as raised:
        embed(WORDS, TextEncoderConfig(str(folder), max_length=32, device="cpu"), tmp_path / "cache")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


def test_weights_of_another_model_are_named(bert_folder: Path, tmp_path: Path) -> None:
    name = "encoder.layer.1.output.dense.weight"
    config = damaged(bert_folder, tmp_path / "bad", lambda w: w.update({name: torch.zeros(3, 5)}))
    with pytest.raises(ValueError, match=rf"holds {name} of shape \(3, 5\), but .* \(32, 64\)"):
        embed(WORDS, config, tmp_path / "cache")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_dense_layer_that_is_not_whole(name: str, dense_t5: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dense_t5, tmp_path / "bad"))
    (folder / "2_Dense" / name).write_text("{")
    config = TextEncoderConfig(str(folder), pooling="mean_dense", max_length=32, device="cpu")
    with pytest.raises(ValueError, match="2_Dense cannot be loaded as a dense layer"):
        embed(WORDS, config, tmp_path / "cache")


def test_space_is_all_that_decides_a_vector(tiny: TextEncoderConfig, bert_folder: Path, tmp_path: Path) -> None:
    other = damaged(bert_folder, tmp_path / "other", lambda weights: weights["pooler.dense.bias"].add_(1))
    changed = [
        other,
        *(
            replace(tiny, **change)
            for change in [{"pooling": "cls"}, {"prefix": "q: "}, {"normalise": False}, {"max_length": 31}]
        ),
    ]
    spaces = [embed(WORDS[:2], config, tmp_path / "cache").space for config in [tiny, *changed]]
    spaces.append(embed(WORDS[:2], tiny, tmp_path / "cache", template="{title}").space)
    assert len(set(spaces)) == len(spaces) == 7
    assert embed(WORDS[:2], replace(tiny, batch_tokens=7), tmp_path / "cache").space == spaces[0]


def test_a_machine_of_another_precision_shares_the_space_and_not_the_cache(
    tiny: TextEncoderConfig, tmp_path: Path, encoded: list[str]
) -> None:
    fine, rough = (embed(WORDS[:2], replace(tiny, precision=name), tmp_path) for name in ("fp32", "bf16"))
    assert len(encoded) == 4
    assert fine.hash == rough.hash and not np.array_equal(fine.vectors, rough.vectors)


def test_prefix_goes_before_every_text(tiny: TextEncoderConfig, tmp_path: Path, encoded: list[str]) -> None:
    embeddings = embed(["a", None], replace(tiny, prefix="query: "), tmp_path)
    plain = embed(["query: a"], tiny, tmp_path)
    assert encoded == ["query: a", "query: a"] and embeddings.present.tolist() == [True, False]
    np.testing.assert_array_equal(embeddings.vectors[0], plain.vectors[0])


def test_template_changes_the_space_but_not_the_cache(tiny: TextEncoderConfig, tmp_path: Path, no_encoder: Any) -> None:
    first = embed(WORDS, tiny, tmp_path, template="{title}")
    no_encoder()
    second = embed(WORDS, tiny, tmp_path, template="{name}")
    assert first.space != second.space
    np.testing.assert_array_equal(first.vectors, second.vectors)


@pytest.mark.parametrize(
    ("modes", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
        (None, "mean"),
    ],
)
def test_null_reads_the_models_own_settings(
    modes: dict[str, Any] | None, pooling: str, bert_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bert_folder, tmp_path / "own"))
    if modes:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    config = TextEncoderConfig(str(folder), pooling=None, max_length=None, precision="fp32")
    implicit = embed(WORDS, config, tmp_path / "a")
    explicit = embed(WORDS, replace(config, pooling=pooling, max_length=16), tmp_path / "b")
    np.testing.assert_array_equal(implicit.vectors, explicit.vectors)
    assert implicit.space == explicit.space


def test_own_pooling_that_is_unknown_is_refused(bert_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bert_folder, tmp_path / "own"))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ValueError, match="pooling_mode_max_tokens: set `pooling`"):
        embed(WORDS, TextEncoderConfig(str(folder), pooling=None, max_length=32), tmp_path)


@pytest.mark.parametrize(
    "setting", [{"pooling": "max"}, {"max_length": 2}, {"batch_tokens": 0}], ids=lambda s: next(iter(s))
)
def test_wrong_settings_are_named(setting: dict[str, Any]) -> None:
    name, value = next(iter(setting.items()))
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        TextEncoderConfig("x", **setting)


@pytest.mark.parametrize(
    "setting", [{"precision": "fp8"}, {"device": "abacus"}, {"device": "meta"}], ids=lambda s: str(*s.values())
)
def test_wrong_machine_settings_are_named(setting: dict[str, Any], tiny: TextEncoderConfig, tmp_path: Path) -> None:
    name, value = next(iter(setting.items()))
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        embed(WORDS, replace(tiny, **setting), tmp_path)


def test_more_tokens_than_positions_are_refused(tiny: TextEncoderConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_length is 65.*at most 64"):
        embed(WORDS, replace(tiny, max_length=65), tmp_path)
