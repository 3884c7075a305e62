"""Training that begins with another run: what is taken over, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.synthetic import catalogue_ids, random_sequences

from recpipe.config.run_config import ColdUsersConfig
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.layers.cold_users import ColdUsers
from recpipe.models.registry import build
from recpipe.training.bundle import Bundle
from recpipe.training.job import load_initial_weights

TINY = {"dim": 16, "heads": 2, "head_dim": 8, "feed_forward": 32, "layers": 1, "decoder_layers": 1}
WHERE = "init_from=toys/tiger/seed_42"


def vocabulary(n: int) -> Vocabulary:
    return Vocabulary(np.array([f"i{number:02}" for number in range(n)], object))


def model(name: str, n_items: int, *, seed: int, ids=None, **config):
    torch.manual_seed(seed)
    ids = ids or {"text": catalogue_ids(n_items, seed=seed)}
    return build(name, {**TINY, **config}, n_items=n_items, max_length=5, ids=ids)


def bundle(model) -> Bundle:
    n = model.n_items
    known = vocabulary(n)
    return Bundle("m", "m", model, known, [None] * n, np.ones(n, np.int64), Protocol(dataset="toys"))


@pytest.mark.parametrize("name", ["tiger", "parallel_tiger", "mql4grec"])
def test_all_weights_are_taken_and_the_own_codes_stay(name):
    start, made = model(name, 30, seed=1), model(name, 20, seed=2)
    fallback = ColdUsers(ColdUsersConfig(), n_items=30).fit(random_sequences(15, 30, longest=6))
    start.cold_users = fallback  # as every bundle has one, of its own catalogue
    own = {modality: codes.codes.clone() for modality, codes in made.item_codes().items()}
    count = load_initial_weights(made, bundle(start), vocabulary(20), where=WHERE)
    tensors = made.state_dict()
    assert made.cold_users is None
    start.cold_users = None
    taken = {key: value for key, value in start.state_dict().items() if not key.endswith("codes")}
    assert count == len(taken) and all(torch.equal(tensors[key], value) for key, value in taken.items())
    for modality, codes in made.item_codes().items():
        assert torch.equal(codes.codes, own[modality])


def test_another_quantizer_other_settings_other_kinds_and_none_are_refused():
    made = model("tiger", 20, seed=0)
    other = {"text": replace(catalogue_ids(20), quantizer="another")}
    cases = {
        "made by another quantizer": bundle(model("tiger", 20, seed=1, ids=other)),
        "other settings": bundle(model("tiger", 20, seed=1, dim=32)),
        "is a ParallelTIGER, not a TIGER": bundle(model("parallel_tiger", 20, seed=1)),
        "there is no such run": None,
        "reads ids of image, this model of text": bundle(
            model("tiger", 20, seed=1, ids={"image": catalogue_ids(20)})
        ),
    }
    for message, start in cases.items():
        with pytest.raises(ValueError, match=f"{WHERE}.*{message}"):
            load_initial_weights(made, start, vocabulary(20), where=WHERE)


def test_a_model_that_knows_items_by_number_needs_the_same_catalogue():
    torch.manual_seed(0)
    one, other = (build("sasrec", {"dim": 8, "layers": 1}, n_items=9, max_length=4) for _ in range(2))
    assert load_initial_weights(other, bundle(one), vocabulary(9), where=WHERE) == len(one.state_dict())
    renamed = Vocabulary(np.array([f"j{number}" for number in range(9)], object))
    with pytest.raises(ValueError, match="another catalogue"):
        load_initial_weights(other, bundle(one), renamed, where=WHERE)
