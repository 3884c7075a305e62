"""Null bands: an untrained model lies in the band of untrained ones, a trained-like one outside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.synthetic import random_sequences, side_of, untrained

from recpipe.evaluation.geometry.measures import measure_vectors
from recpipe.evaluation.geometry.tables import null_band, random_tables, tables_of
from recpipe.evaluation.geometry.tables import untrained as untrained_copy
from recpipe.evaluation.segments import popularity_groups
from recpipe.models.registry import build, model_class, types

ITEMS = 60
DATA = random_sequences(80, ITEMS, seed=1)
EVENTS = np.bincount(DATA.items, minlength=ITEMS + 1)[1:]
GROUPS = popularity_groups(EVENTS)
NEURAL = [name for name in types() if not model_class(name).closed_form]


def test_the_band_holds_one_more_value_in_19_of_20_cases() -> None:
    draw = np.random.default_rng(0)
    for n in (2, 5, 12):
        inside = []
        for *values, one_more in draw.normal(3, 2, size=(3000, n + 1)):
            low, high = null_band(values)
            inside.append(low <= one_more <= high)
        assert np.mean(inside) == pytest.approx(0.95, abs=0.015), n


def test_a_band_needs_two_values() -> None:
    assert null_band([1.0, np.nan]) is None
    assert null_band([2.0, np.nan, 2.0]) == (2.0, 2.0)


def fresh(name: str, **config):
    torch.manual_seed(99)
    return untrained(name, config, DATA, n_items=ITEMS, max_length=10)


@pytest.mark.parametrize("name", NEURAL)
def test_an_untrained_copy_has_other_weights_and_the_same_inputs(name: str) -> None:
    model = fresh(name)
    before = torch.get_rng_state()
    one, same, other = (untrained_copy(model, name, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())  # the global generator is not used
    assert one.config == model.config and not one.training
    for table in one.item_tables():
        a, b, c = (tables_of(each)[table] for each in (one, same, other))
        np.testing.assert_array_equal(a, b)
        assert np.abs(a - c).max() > 0
    for key, buffer in model.named_buffers():
        torch.testing.assert_close(dict(one.named_buffers())[key], buffer)


def test_an_untrained_copy_has_the_content_vectors_of_the_bundle() -> None:
    """A loaded model has its vectors from its tensors only."""
    for trained in (False, True):
        side = side_of(DATA, ITEMS, vectors="text", train_vectors=trained)
        model = build("sasrec", {"dim": 8}, n_items=ITEMS, max_length=10, side=side)
        loaded = build("sasrec", {"dim": 8}, n_items=ITEMS, max_length=10, side=type(side).from_dict(side.to_dict()))
        loaded.load_tensors(model.state_dict())
        again = untrained_copy(loaded, "sasrec", 1)
        torch.testing.assert_close(again.items.vectors["of_text"].given, model.items.vectors["of_text"].given)
        missing = ~side.values["vectors.text"][1:, -1].astype(bool)
        assert not tables_of(again)["text"][missing].any() and tables_of(again)["text"][~missing].any(1).all()


def measures_of(table: np.ndarray):
    return measure_vectors(table.astype(np.float64), EVENTS, GROUPS, 10)


@pytest.mark.parametrize("name", ["sasrec", "bert4rec", "tiger"])
def test_an_untrained_model_lies_within_the_band_of_untrained_ones(name: str) -> None:
    """19 of 20 measures lie inside; those of an almost trained model lie outside."""
    model = fresh(name)
    ((table, _),) = tables_of(model).items()
    nulls = [measures_of(tables_of(untrained_copy(model, name, seed))[table]).values for seed in range(6)]
    bands = {key: null_band([each[key] for each in nulls]) for key in nulls[0]}
    inside = []
    for seed in range(100, 120):
        values = measures_of(tables_of(untrained_copy(model, name, seed))[table]).values
        inside += [low <= values[key] <= high for key, (low, high) in bands.items()]
    assert 0.85 < np.mean(inside) <= 1

    learned = tables_of(model)[table] + 3 * np.outer(np.log1p(EVENTS), np.ones(model.config.dim))
    values = measures_of(learned).values
    outside = {key for key, (low, high) in bands.items() if not low <= values[key] <= high}
    assert outside >= {"participation_ratio", "iso_score", "mean_cosine", "norm_popularity"}


def test_random_numbers_have_the_shape_and_the_sign_of_a_table() -> None:
    tables = {"both": np.array([[-1, 2.0]] * 40, np.float32), "parts": np.ones((40, 3), np.float32)}
    one, same, other = (random_tables(tables, seed) for seed in (1, 1, 2))
    for name, table in tables.items():
        assert one[name].shape == table.shape
        np.testing.assert_array_equal(one[name], same[name])
        assert (one[name] != other[name]).all()
    assert one["both"].min() < 0 < one["parts"].min()
