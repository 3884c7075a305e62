"""Side information: fitted columns, vectors, and features of histories."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from tests.synthetic import FULL, catalogue, described, random_sequences, side_of

from recpipe.layers import side
from recpipe.layers.side import Scale, Side, SideConfig
from recpipe.semantic_ids.vector_rows import VectorRows

ITEMS = 12
DATA = described(random_sequences(70, ITEMS))
COLUMNS, VECTORS = catalogue(ITEMS)


def test_values_are_those_of_the_items_behind_a_row_of_padding():
    side = side_of(DATA, ITEMS, vectors="text", **FULL)
    vectors, present = VECTORS["text"]
    assert side.widths == {"text": 6}
    np.testing.assert_array_equal(side.values["vectors.text"][1:], np.c_[vectors, present])
    for column in side.items:
        np.testing.assert_array_equal(side.values[f"items.{column.name}"][1:], column.encode(COLUMNS[column.name]))
    assert not any(values[0].any() for values in side.values.values())


def test_large_tables_of_vectors_are_standardised_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    table = (rng.normal(size=(500, 7)) + 3).astype(np.float32)
    table[:, -1] = rng.random(500) < 0.8
    table[table[:, -1] == 0] = 0
    scale = Scale.of(table)
    expected = scale.apply(table)
    monkeypatch.setattr(side, "AT_ONCE", 800)
    blocks = Scale.of(table)
    np.testing.assert_allclose(blocks.mean, scale.mean, rtol=1e-12)
    assert blocks.deviation == pytest.approx(scale.deviation, rel=1e-12)
    np.testing.assert_array_equal(scale.apply(table), expected)


def test_items_without_a_vector_have_zeros_whatever_the_rows_say():
    vectors, present = np.full((4, 3), 2.0, np.float32), np.array([True, False, True, False])
    table = side.vector_table(VectorRows(vectors, np.array([0, -1, 3, -1])), present)
    np.testing.assert_array_equal(table, side.vector_table(vectors, present))
    assert table.tolist() == [[0] * 4, [2, 2, 2, 1], [0] * 4, [2, 2, 2, 1], [0] * 4]


def test_a_column_may_be_called_like_the_vectors():
    side = Side.of(SideConfig(vectors="text", items="text"), DATA, {"text": COLUMNS["price"]}, VECTORS, n_items=ITEMS)
    assert side.values["vectors.text"].shape == (ITEMS + 1, 7)
    assert side.values["items.text"].shape[1] == side.items[0].per_row


def test_standardised_vectors_have_mean_zero_variance_one_and_keep_who_is_absent():
    table = side_of(DATA, ITEMS, vectors="text").values["vectors.text"]
    actual = Scale.of(table).apply(table)
    there = table[:, -1] > 0
    np.testing.assert_allclose(actual[there, :-1].mean(0), 0, atol=1e-6)
    assert np.square(actual[there, :-1]).mean() == pytest.approx(1, rel=1e-5)
    assert not actual[~there].any() and (actual[there, -1] == 1).all()
    before, after = (np.linalg.norm(x[there][:, None, :-1] - x[there][:, :-1], axis=2) for x in (table, actual))
    np.testing.assert_allclose(after / after.max(), before / before.max(), rtol=1e-4, atol=1e-6)


def test_histories_are_encoded_row_by_row():
    side = side_of(DATA, ITEMS, **FULL)
    actual = side.encode(DATA)
    assert set(actual) == {"user.country", "user.age", "event.rating"}
    country, rating = side.users[0], side.events[0]
    for u, name in enumerate(DATA.profiles["country"].to_pylist()):
        assert actual["user.country"][u, 0] == (0 if name is None else country.values.index(name) + 1)
    for n, value in enumerate(DATA.ratings):
        assert actual["event.rating"][n, 0] == (0 if np.isnan(value) else rating.values.index(f"{value:g}") + 1)


def test_pretend_users_add_nothing_where_nothing_or_nothing_new_is_known():
    side = side_of(DATA, ITEMS, **FULL)
    bare = replace(DATA, ratings=None, profiles={})
    unseen = {"country": pa.array(["nowhere"] * len(DATA)), "age": pa.nulls(len(DATA))}
    for data in (bare, replace(DATA, ratings=np.full_like(DATA.ratings, np.nan), profiles=unseen)):
        actual = side.encode(data)
        assert {name: value.shape for name, value in actual.items()} == {
            name: value.shape for name, value in side.encode(DATA).items()
        }
        assert not any(value.any() for value in actual.values())


def test_a_side_survives_json_but_for_its_values():
    side = side_of(DATA, ITEMS, vectors="text+image", **FULL)
    other = Side.from_dict(json.loads(json.dumps(side.to_dict())))
    assert replace(side, values={}) == other


def test_the_fingerprint_changes_with_settings_encodings_and_values():
    side = side_of(DATA, ITEMS, vectors="text", **FULL)
    text = VECTORS["text"]
    others = [
        side_of(DATA, ITEMS, vectors="text", combine="concat", **FULL),
        side_of(DATA, ITEMS, vectors="image", **FULL),
        Side.of(side.config, DATA, COLUMNS, {"text": (2 * text[0], text[1])}, n_items=ITEMS),
        Side.of(
            side.config, DATA.select(np.arange(9), np.zeros(9, int), DATA.lengths[:9]), COLUMNS, VECTORS, n_items=ITEMS
        ),
    ]
    assert side_of(DATA, ITEMS, vectors="text", **FULL).fingerprint() == side.fingerprint()
    assert len({side.fingerprint(), *(other.fingerprint() for other in others)}) == 5


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({"vectors": "image"}, {}, r"side\.vectors asks for image; available: text.*modality=image"),
        ({"items": "colour"}, {}, r"side\.items asks for colour; columns there are: genres, price"),
        ({"users": "gender"}, {}, r"side\.users asks for gender; columns there are: age, country"),
        ({"events": "rating"}, {"ratings": None}, "asks for rating and this data set has none"),
        ({"events": "hour+rating"}, {"timestamps": None}, "asks for hour and this data set has no timestamps"),
        ({"events": "minute"}, {}, r"side\.events has \['minute'\]; allowed: none, rating, hour"),
        ({"combine": "sum"}, {}, "side.combine is 'sum'; allowed: add, concat, alone"),
        ({"combine": "alone"}, {}, "neither side.vectors nor side.items"),
        ({"combine": "alone", "items": "price", "head": "ids"}, {}, "side.head cannot be ids"),
    ],
)
def test_what_is_not_there_is_refused(settings, change, message):
    with pytest.raises(ValueError, match=message):
        Side.of(SideConfig(**settings), replace(DATA, **change), COLUMNS, {"text": VECTORS["text"]}, n_items=ITEMS)


def test_vectors_that_no_item_has_are_refused():
    with pytest.raises(ValueError, match="no item has a vector"):
        Side.of(SideConfig(vectors="text"), DATA, {}, {"text": (np.zeros((2, 3)), np.zeros(2, bool))}, n_items=2)


@pytest.mark.parametrize("name", ["items", "users", "events"])
def test_a_model_of_item_vectors_refuses_other_side_information(name):
    SideConfig(vectors="text").check_vectors_only("content_knn")
    with pytest.raises(ValueError, match=f"content_knn reads item vectors only; set side.{name}=none"):
        SideConfig(vectors="text", **{name: "gap"}).check_vectors_only("content_knn")
