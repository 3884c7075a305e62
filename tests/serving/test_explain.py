"""Explanations against scores one by one, and against the known parts of a neighbourhood model's score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.synthetic import catalogue_ids, random_sequences, sequences

from recpipe.config.run_config import ColdUsersConfig
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.layers.cold_users import ColdUsers
from recpipe.models.registry import build
from recpipe.serving.explain import explain, explain_response
from recpipe.serving.model import ServingBundle
from recpipe.training.bundle import Bundle

ITEMS = 20
IDS = [f"i{n:02}" for n in range(1, ITEMS + 1)]
DATA = random_sequences(40, ITEMS, seed=1)
TINY = {
    "dim": 16,
    "heads": 2,
    "head_dim": 8,
    "feed_forward": 32,
    "layers": 1,
    "decoder_layers": 1,
    "beam": 20,
    "renormalise": True,
}
CONFIGS = {"item_knn": {}, "sasrec": {"dim": 16}, "popular": {}, "tiger": TINY}
HISTORY = ["i03", "unknown", "i08", "i03", "i12", "i05", "i17", "i01"]


def model_of(name: str, *, max_length: int = 6) -> ServingBundle:
    torch.manual_seed(0)
    ids = {"ids": {"text": catalogue_ids(ITEMS)}} if name == "tiger" else {}
    model = build(name, CONFIGS[name], n_items=ITEMS, max_length=max_length, **ids)
    if model.closed_form:
        model.fit(DATA)
    model.cold_users = ColdUsers(ColdUsersConfig(), n_items=ITEMS).fit(DATA, seed=0)
    events = np.bincount(DATA.items, minlength=ITEMS + 1)[1:]
    titles = [f"Title {n}" for n in range(1, ITEMS + 1)]
    vocabulary = Vocabulary(np.array(IDS, object))
    return ServingBundle.of(Bundle(name, name, model.eval(), vocabulary, titles, events, Protocol(dataset="tiny")))


def value(model: ServingBundle, history: list[str], item: str) -> float:
    """Log-probability of one item after one history, or its score where there are no probabilities."""
    row = model.score({"user": history}, [item]).to_pylist()[0]
    return float(np.log(row["probability"])) if model.model.probabilistic else row["score"]


@pytest.mark.parametrize("name", CONFIGS)
def test_an_effect_is_what_the_item_loses_without_the_event(name):
    model = model_of(name)
    rows = explain(model, HISTORY, ["i02", "i09"]).to_pylist()
    assert {(row["recommended_id"], row["position"]) for row in rows} == {
        (item, position) for item in ("i02", "i09") for position in (0, 2, 3, 4, 5, 6, 7)
    }
    for row in rows:
        without = [item for place, item in enumerate(HISTORY) if place != row["position"]]
        expected = value(model, HISTORY, row["recommended_id"]) - value(model, without, row["recommended_id"])
        assert row["effect"] == pytest.approx(expected, abs=1e-5)
        assert row["item_id"] == HISTORY[row["position"]] and row["title"] == f"Title {int(row['item_id'][1:])}"
    effects = [row["effect"] for row in rows if row["recommended_id"] == "i09"]
    assert effects == sorted(effects, reverse=True)
    assert any(abs(effect) > 1e-4 for effect in effects) != (name == "popular")  # which reads no history


def test_the_effect_in_item_knn_is_the_similarity_of_the_event():
    rows = [[1, 2, 3], [1, 2], [2, 3], [3, 4], [1, 4]]
    model = build("item_knn", {"similarity": "cosine", "shrinkage": 0}, n_items=4, max_length=6)
    model.fit(sequences(rows))
    users = np.array([[item in row for row in rows] for item in range(1, 5)], float)  # (items, users)
    cosine = users @ users.T / np.sqrt(np.outer(users.sum(1), users.sum(1)))
    vocabulary = Vocabulary(np.array(IDS[:4], object))
    bundle = Bundle(
        "knn", "item_knn", model, vocabulary, [None] * 4, users.sum(1).astype(int), Protocol(dataset="tiny")
    )
    for row in explain(ServingBundle.of(bundle), ["i01", "i03"], ["i02"]).to_pylist():
        assert row["effect"] == pytest.approx(cosine[1, int(row["item_id"][1:]) - 1], abs=1e-6)


def test_the_event_beyond_the_window_moves_up_when_one_is_left_out():
    model = model_of("sasrec", max_length=3)
    history = ["i05", "i06", "i07", "i08", "i09"]
    effects = {row["position"]: row["effect"] for row in explain(model, history, ["i02"]).to_pylist()}
    assert [*sorted(effects)] == [1, 2, 3, 4]
    assert effects[1] == pytest.approx(0, abs=1e-6)  # the model does not read it
    for position in (2, 3, 4):
        without = history[:position] + history[position + 1 :]
        assert effects[position] == pytest.approx(value(model, history, "i02") - value(model, without, "i02"), abs=1e-5)


def test_only_the_last_events_are_left_out_of_a_long_history():
    model = model_of("item_knn", max_length=200)
    rows = explain(model, IDS * 5, ["i02"]).to_pylist()
    assert sorted(row["position"] for row in rows) == [*range(50, 100)]
    assert len(explain(model, IDS * 5, ["i02"], last=3)) == 3


def test_the_only_event_of_a_model_without_probabilities_has_no_effect_to_tell():
    assert explain(model_of("item_knn"), ["i03"], ["i02"])["effect"].to_pylist() == [None]
    model = model_of("sasrec")
    (effect,) = explain(model, ["i03"], ["i02"])["effect"].to_pylist()
    assert effect == pytest.approx(value(model, ["i03"], "i02") - value(model, [], "i02"), abs=1e-5)


def test_a_model_that_reads_the_time_of_the_question_is_explained_at_that_time():
    torch.manual_seed(0)
    config = {"dim": 16, "time_mode": "query"}
    model = build("hstu", config, n_items=ITEMS, max_length=6).eval()
    vocabulary, protocol = Vocabulary(np.array(IDS, object)), Protocol(dataset="tiny", time="query")
    bundle = ServingBundle.of(Bundle("hstu", "hstu", model, vocabulary, [None] * ITEMS, np.ones(ITEMS, int), protocol))
    histories = {"all": ["i03", "i08", "i12"], "without": ["i08", "i12"]}
    times, day = {"all": [100, 200, 300], "without": [200, 300]}, 86400

    def effect(now: int) -> float:
        rows = explain(bundle, histories["all"], ["i05"], timestamps=times["all"], now=now).to_pylist()
        return next(row["effect"] for row in rows if row["position"] == 0)

    table = bundle.score(histories, ["i05"], timestamps=times, now=400)
    with_event, without = np.log(table["probability"].to_numpy())
    assert effect(400) == pytest.approx(with_event - without, abs=1e-5) != effect(400 * day)


@pytest.mark.parametrize("history", [[], ["unknown"]])
def test_a_history_without_known_items_explains_nothing(history):
    answer = explain_response(model_of("sasrec"), history, ["i02", "i05"])
    assert answer == {
        "unit": "log_probability",
        "candidates": [{"item_id": item, "title": f"Title {n}", "events": []} for item, n in (("i02", 2), ("i05", 5))],
    }


def test_the_answer_of_the_service_has_the_rows_of_the_table():
    model = model_of("item_knn")
    answer, table = explain_response(model, HISTORY, ["i09", "i02"]), explain(model, HISTORY, ["i09", "i02"])
    assert answer["unit"] == "score" and [part["item_id"] for part in answer["candidates"]] == ["i09", "i02"]
    rows = [event for part in answer["candidates"] for event in part["events"]]
    assert rows == table.drop_columns(["recommended_id"]).to_pylist()


@pytest.mark.parametrize(
    ("items", "timestamps", "message"),
    [
        (["i02", "zz"], None, "'zz' is not in the catalogue"),
        ([], None, "at least one recommended item"),
        (["i02"], [1, 2], "2 timestamps for 8 events"),
    ],
)
def test_wrong_questions_are_errors(items, timestamps, message):
    with pytest.raises(ValueError, match=message):
        explain(model_of("popular"), HISTORY, items, timestamps=timestamps)
