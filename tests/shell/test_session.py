"""`--params` become tags, and what the configuration does not have is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from kedro.framework.session import KedroSession

from recpipe.pipelines.parameters import Refused, check_parameters, same_kind, winning
from recpipe.session import tags, within_protocol

MODELS = ["item_knn", "popular", "popular_recent", "sasrec"]
BASELINES = ["popular", "popular_recent"]


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ("sasrec", {}, {"shared", "sasrec", "popular", "popular_recent"}),
        ("sasrec", {"pipeline_names": []}, {"shared", "sasrec", "popular", "popular_recent"}),
        ("sasrec", {"pipeline_names": ["__default__"]}, {"shared", "sasrec", "popular", "popular_recent"}),
        ("sasrec", {"pipeline_name": "train"}, {"shared", "sasrec"}),
        ("sasrec", {"pipeline_names": ["train", "evaluate"]}, {"shared", "sasrec"}),
        ("sasrec+item_knn", {"pipeline_names": ["train"]}, {"shared", "sasrec", "item_knn"}),
        ("all", {"pipeline_names": ["train"]}, {"shared", *MODELS}),
        ("sasrec", {"tags": ("popular",)}, {"popular"}),
        ("sasrec", {"node_names": ("popular.train_model",)}, set()),
        ("sasrec", {"namespaces": ["popular"]}, set()),
        (
            "sasrec",
            {"pipeline_names": ["train"], "from_nodes": ["item_knn.train_model"]},
            {"shared", "sasrec", "item_knn"},
        ),
        (
            "sasrec",
            {"pipeline_names": ["train"], "to_outputs": ["popular.bundle"]},
            {"shared", "sasrec", "popular"},
        ),
    ],
)
def test_model_becomes_tags(model: str, options: dict, expected: set[str]) -> None:
    found = tags(model, MODELS, BASELINES, options)
    assert set(found) == expected
    assert len(found) == len(set(found))


@pytest.mark.parametrize("model", ["sasrek", "popular+sasrek", "sasrec,popular", "", "all+sasrec"])
def test_unknown_model_is_refused_even_with_own_tags(model: str) -> None:
    with pytest.raises(Refused, match="unknown model"):
        tags(model, MODELS, BASELINES, {"tags": ("shared",)})


def test_refusal_names_the_nearest_and_all() -> None:
    with pytest.raises(Refused, match=r"'sasrek' \(did you mean 'sasrec'\?\).*item_knn, popular"):
        tags("sasrek", MODELS, BASELINES, {})


def test_all_leaves_out_what_uses_more_of_time_than_the_protocol_allows(caplog) -> None:
    conf = {
        "dataset": "d",
        "protocol": {"time": "none"},
        "datasets": {"d": {}, "e": {"protocol": {"time": "last_item"}}, "f": {}},
        "models": {
            "a": {"dim": 3},
            "b": {"time_mode": "last_item", "datasets": {"f": {"time_mode": "none"}}},
            "c": {"time_mode": "query"},
        },
    }
    assert within_protocol({}, conf) == ["a"]
    with caplog.at_level("INFO", logger="recpipe"):
        assert tags("all", conf["models"], [], {"pipeline_name": "train"}, able=["a"]) == ["shared", "a"]
    assert "left out of all, for want of vectors or of time: b, c" in caplog.text
    assert within_protocol({"dataset": "e"}, conf) == within_protocol({"dataset": "f"}, conf) == ["a", "b"]
    assert within_protocol({"protocol": {"time": "query"}}, conf) == ["a", "b", "c"]
    assert within_protocol({"dataset": "e", "protocol": {"time": "none"}}, conf) == ["a"]
    assert within_protocol({"models": {"c": {"time_mode": "none"}}}, conf) == ["a", "c"]


CONF = {
    "seed": 42,
    "train": {"epochs": 3, "lr": 0.1, "resume": True, "clip": None, "own": {}},
    "cut": [1, 5],
    "name": "a",
}


@pytest.mark.parametrize(
    "asked",
    [
        {"seed": 1, "name": "b"},
        {"train": {"lr": 1, "clip": 0.5}},
        {"train": {"resume": False, "own": {"anything": 1}}},
        {"train": {"lr": "2011-10-01"}},
        {"train": {"epochs": None}},
    ],
)
def test_known_parameters_pass(asked: dict) -> None:
    check_parameters(asked, CONF)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"sed": 1}, r"unknown parameter 'sed' \(did you mean 'seed'\?\)"),
        ({"train": {"epoch": 1}}, r"'train\.epoch' \(did you mean 'epochs'\?\); train has epochs, lr"),
        ({"train": 3}, "'train' is a block; give one of its keys, epochs"),
        ({"seed": {"a": 1}}, "'seed' cannot be"),
        ({"train": {"epochs": "many"}}, r"'train\.epochs' cannot be 'many': conf has 3"),
        ({"train": {"epochs": 1.5}}, "cannot be 1.5"),
        ({"train": {"epochs": True}}, "cannot be True"),
        ({"train": {"resume": 1}}, "cannot be 1"),
        ({"cut": 5}, "cannot be 5"),
    ],
)
def test_unknown_or_mistyped_parameters_are_refused(asked: dict, message: str) -> None:
    with pytest.raises(Refused, match=message):
        check_parameters(asked, CONF)


def test_a_share_may_become_a_date_but_no_other_text() -> None:
    assert same_kind("2011-10-01", 0.1)
    assert not same_kind("tomorrow", 0.1)
    assert not same_kind("2011-10-01", 1)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"dataset": "online_retai"},
            r"unknown dataset 'online_retai' \(did you mean 'online_retail'\?\).*ml-1m",
        ),
        ({"model": "sasrek"}, "unknown model 'sasrek'"),
        ({"evaluate": {"recomend": 3}}, r"unknown parameter 'evaluate\.recomend' \(did you mean 'recommend'"),
    ],
)
def test_a_run_is_refused_before_anything_is_written(project_copy, session_in, params, message) -> None:
    with session_in(project_copy, runtime_params=params) as session, pytest.raises(Refused, match=message):
        session.run(pipeline_names=["ingest"])
    assert sorted(path.name for path in (project_copy / "data").iterdir()) == ["01_raw"]
    assert not (project_copy / "mlflow.db").exists()


def test_a_run_takes_what_the_command_line_says(project: Path, session_in, monkeypatch) -> None:
    asked = {"dataset": "online_retail", "train": {"max_epochs": 7}, "protocol": {"exclude_seen": True}}
    monkeypatch.setattr(KedroSession, "run", lambda self, **_: self.load_context().params)
    with session_in(project, runtime_params=asked) as session:
        params = session.run()
    block = params["models"]["sasrec"]
    assert block["datasets"]["online_retail"]["train"]["max_epochs"] == block["train"]["max_epochs"] == 7
    assert params["datasets"]["online_retail"]["protocol"]["exclude_seen"] is True


def test_the_command_line_wins_over_data_set_and_model() -> None:
    conf = {
        "dataset": "d",
        "protocol": {"exclude_seen": True, "history": 200},
        "datasets": {"d": {"protocol": {"exclude_seen": False}}, "e": {}},
        "models": {
            "a": {"type": "a", "train": {"patience": 3}, "datasets": {"d": {"train": {"max_epochs": 9}}}},
            "b": {"type": "b"},
        },
    }
    asked = {
        "protocol": {"exclude_seen": True, "history": 50},
        "train": {"max_epochs": 1, "patience": 2, "lr": 1},
    }
    assert winning(asked, conf) == {
        **asked,
        "datasets": {"d": {"protocol": {"exclude_seen": True}}},
        "models": {"a": {"train": {"patience": 2}, "datasets": {"d": {"train": {"max_epochs": 1}}}}},
    }
    assert "datasets" not in asked
    assert winning({"dataset": "e", **asked}, conf)["models"] == {"a": {"train": {"patience": 2}}}
    named = {"models": {"a": {"train": {"max_epochs": 3}}}}
    assert _train(winning(named, conf), "a") == {"max_epochs": 3}
    blocks = {
        "train": {"optimiser": {"lr": 1, "name": "x"}},
        "models": {"b": {"train": {"optimiser": {"lr": 2}}}},
    }
    with_block = {**conf, "models": {"b": {"train": {"optimiser": {"lr": 0, "name": "y"}}}}}
    assert winning(blocks, with_block)["models"]["b"]["train"]["optimiser"] == {"lr": 2, "name": "x"}
    dial = {"cold_users": {"segments": "cluster", "novelty": 0.5}}
    fallback = {**conf, "datasets": {"d": {"cold_users": {"segments": "country"}}}}
    assert winning(dial, fallback)["datasets"] == {"d": {"cold_users": {"segments": "cluster"}}}
    full_name = {"train": {"patience": 2}, "models": {"a": {"train": {"patience": 7}}}}
    assert winning(full_name, conf)["models"]["a"]["train"]["patience"] == 7


def _train(given: dict, model: str) -> dict:
    return given["models"][model]["datasets"]["d"]["train"]
