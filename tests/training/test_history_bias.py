"""A bias of the scores of items in the history (``train.history_bias``)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.training.runs import DATA, METRIC, PROTOCOL, run, sasrec, settings

from recpipe.data.sequences import Vocabulary
from recpipe.evaluation.evaluate import validator
from recpipe.models.registry import model_class
from recpipe.training.bundle import Bundle, load_bundle, save_bundle
from recpipe.training.fit import run_fingerprint
from recpipe.training.settings import check_settings

HISTORIES = DATA.valid.histories
SEEN_ALLOWED = replace(PROTOCOL, exclude_seen=False)


def biased(bias: float):
    torch.manual_seed(0)
    model = sasrec()
    model.history_bias = bias
    return model


def test_a_large_negative_bias_gives_the_lists_without_seen_items():
    items, _ = biased(-1e4).recommend(HISTORIES, 5, exclude_seen=False)
    expected, _ = biased(0.0).recommend(HISTORIES, 5, exclude_seen=True)
    np.testing.assert_array_equal(items, expected)


@pytest.mark.parametrize("bias", [-0.7, 1.3])
def test_the_bias_is_added_once_to_each_item_of_the_whole_history(bias):
    plain, changed = np.zeros((len(HISTORIES), 31)), np.zeros((len(HISTORIES), 31))
    for scores, model in ((plain, biased(0.0)), (changed, biased(bias))):
        for rows, part in model.score_batches(HISTORIES, exclude_seen=False):
            scores[rows] = part.numpy()
    for user in range(len(HISTORIES)):
        start, stop = HISTORIES.offsets[user : user + 2]
        plain[user, np.unique(HISTORIES.items[start:stop])] += bias
    np.testing.assert_allclose(changed[:, 1:], plain[:, 1:], atol=1e-5)


def test_validation_with_the_bias_selects_as_if_seen_items_were_excluded(tmp_path):
    allowed = validator(DATA.valid, SEEN_ALLOWED)
    with_bias = run(tmp_path / "bias", validate=allowed, history_bias=-1e4)
    excluded = run(tmp_path / "excluded")
    assert [row.get(METRIC) for row in with_bias.curve] == [row.get(METRIC) for row in excluded.curve]


def test_a_bundle_keeps_the_bias(tmp_path):
    model = biased(-2.5)
    vocabulary = Vocabulary(np.array([f"i{n}" for n in range(30)]))
    bundle = Bundle("m", "sasrec", model, vocabulary, [None] * 30, np.ones(30, np.int64), PROTOCOL, {})
    save_bundle(bundle, tmp_path)
    loaded = load_bundle(tmp_path).model
    assert loaded.history_bias == -2.5
    assert not loaded.scores_by_product
    for one, other in zip(
        loaded.recommend(HISTORIES, 5, exclude_seen=False),
        model.recommend(HISTORIES, 5, exclude_seen=False),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_a_bias_of_zero_leaves_fingerprints_of_checkpoints_as_they_were():
    model = sasrec()
    prints = [run_fingerprint("data", settings(history_bias=bias), 0, model) for bias in (0.0, 1.0)]
    assert prints[0] == run_fingerprint("data", settings(), 0, model) != prints[1]


def test_models_that_search_a_tree_refuse_the_bias():
    with pytest.raises(ValueError, match=r"history_bias is -20 and TIGER .* protocol.exclude_seen"):
        check_settings(settings(history_bias=-20.0), model_class("tiger"))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), True, "-20"])
def test_a_bias_that_is_no_finite_number_is_refused(value):
    with pytest.raises(ValueError, match="history_bias is .*finite"):
        settings(history_bias=value)
