"""The session: pipelines for the models of a command, names refused before anything runs, the conf read once."""

from __future__ import annotations

import builtins
import io
from functools import wraps
from pathlib import Path

import pytest
from kedro.framework.session import KedroSession

from recpipe.pipelines.wiring import current


def planned(session_in, monkeypatch, folder: Path, params: dict, **options):
    """The wiring of a run, with nothing run."""
    seen = []
    original = KedroSession.run

    @wraps(original)
    def run(self, **_) -> None:
        seen.append(current()[1])

    monkeypatch.setattr(KedroSession, "run", run)
    with session_in(folder, runtime_params=params) as session:
        session.run(**options)
    return seen[0]


@pytest.mark.parametrize(
    ("params", "options", "models"),
    [
        ({}, {}, ("sasrec", "popular", "popular_recent")),
        ({}, {"pipeline_names": ["__default__"]}, ("sasrec", "popular", "popular_recent")),
        ({}, {"pipeline_name": "train"}, ("sasrec",)),
        ({}, {"pipeline_names": ["train", "evaluate"]}, ("sasrec",)),
        ({"model": "svd+item_knn"}, {"pipeline_names": ["train"]}, ("svd", "item_knn")),
        ({}, {"pipeline_names": ["train"], "from_nodes": ["svd.train_model"]}, ("sasrec", "svd")),
        ({}, {"pipeline_names": ["train"], "tags": ("svd",)}, ("sasrec", "svd")),
        ({}, {"pipeline_names": ["tiger"]}, ("tiger",)),
        ({"model": "svd"}, {"pipeline_names": ["tiger"]}, ("svd", "tiger")),
        ({"dataset": "amazon-beauty"}, {}, ("sasrec", "popular")),
    ],
)
def test_pipelines_are_built_for_the_models_of_the_command(
    project, session_in, monkeypatch, params, options, models
) -> None:
    assert planned(session_in, monkeypatch, project, params, **options).models == models


def test_all_leaves_out_what_the_protocol_or_the_data_set_does_not_allow(
    project, session_in, monkeypatch
) -> None:
    def models(**params: object) -> set[str]:
        return set(
            planned(
                session_in, monkeypatch, project, {"model": "all", **params}, pipeline_names=["train"]
            ).models
        )

    plain = models()
    assert {"text_knn", "sasrec", "popular", "tiger", "parallel_tiger"} < plain
    assert not {"siglip_knn", "hstu_last_item", "hstu_query"} & plain
    assert "siglip_knn" in models(dataset="ml-1m", modality="text+image")
    assert "hstu_last_item" in models(protocol={"time": "last_item"})
    assert {"hstu_last_item", "hstu_query"} < models(protocol={"time": "query"})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"dataset": "online_retai"},
            r"unknown dataset 'online_retai' \(did you mean 'online_retail'\?\).*ml-1m",
        ),
        ({"model": "sasrek"}, r"unknown model 'sasrek' \(did you mean 'sasrec'\?\)"),
        ({"model": "popular+sasrek"}, "unknown model 'sasrek'"),
        ({"model": "all+sasrec"}, "unknown model 'all'"),
        ({"model": ""}, "unknown model ''"),
        (
            {"evaluate": {"recomend": 3}},
            r"unknown parameter 'evaluate.recomend' .*\(did you mean 'recommend'",
        ),
        (
            {"models": {"tiger": {"dropuot": 0.3}}},
            r"\(did you mean 'dropout'\?\); it belongs in conf/base/.*tiger.yml",
        ),
        (
            {"models": {"tiger": {"dropout": 0.3}}},
            r"models.tiger \(command line\).*models sasrec; add model=tiger",
        ),
        ({"datasets": {"ml-1m": {"bad_rows": "drop"}}}, r"datasets.ml-1m .*changes nothing.*dataset=ml-1m"),
        ({"model": "popular", "side": {"vectors": "text"}}, "no side information is read by popular"),
        ({"model": "popular+svd", "train": {"max_epochs": 3}}, "no gradient descent trains popular, svd"),
    ],
)
def test_a_run_is_refused_before_anything_is_written(project_copy, session_in, params, message) -> None:
    with session_in(project_copy, runtime_params=params) as session, pytest.raises(ValueError, match=message):
        session.run(pipeline_names=["ingest"])
    assert sorted(path.name for path in (project_copy / "data").iterdir()) == ["01_raw"]
    assert not (project_copy / "mlflow.db").exists()


def test_a_run_takes_what_the_command_line_says(project: Path, session_in, monkeypatch) -> None:
    params = {"train": {"max_epochs": 7}, "protocol": {"exclude_seen": True}}
    monkeypatch.setattr(
        KedroSession, "run", wraps(KedroSession.run)(lambda self, **_: self.load_context().params)
    )
    with session_in(project, runtime_params=params) as session:
        found = session.run(pipeline_names=["train"])
    assert found["models"]["sasrec"].train["max_epochs"] == 7
    assert found["protocol"].exclude_seen is True


def test_the_conf_is_read_once_in_a_run(project_copy, session_in, monkeypatch) -> None:
    """Opened files are counted, whoever opens them."""
    opened: list[str] = []
    original = builtins.open

    def counting(file, *args, **options):
        if str(file).endswith((".yml", ".yaml")) and "/conf/" in str(file):
            opened.append(str(file))
        return original(file, *args, **options)

    monkeypatch.setattr(builtins, "open", counting)
    monkeypatch.setattr(io, "open", counting)
    with session_in(project_copy, env="test", runtime_params={"model": "popular"}) as session:
        opened.clear()
        session.run(pipeline_names=["ingest", "train"])
    parameters = [file for file in opened if "/parameters/" in file]
    assert len(parameters) > 50
    repeated = {file for file in opened if opened.count(file) > 1}
    assert not repeated


@pytest.mark.parametrize("name", ["evaluate", "report", "text", "text_parts"])
def test_no_model_may_have_the_name_of_a_pipeline_or_of_a_kind_of_ids(project_copy, session_in, name) -> None:
    file = project_copy / f"conf/local/parameters/models/{name}.yml"
    file.parent.mkdir(parents=True)
    file.write_text(f"models: {{{name}: {{extends: popular}}}}")
    with (
        session_in(project_copy) as session,
        pytest.raises(ValueError, match=f"no model can be called '{name}'"),
    ):
        session.run(pipeline_names=["ingest"])


def test_two_sessions_of_one_process_keep_to_their_own_data_set(project: Path, session_in) -> None:
    """Kedro resolves ``${globals:...}`` by the loader that was made last."""
    found = {}
    with session_in(project, runtime_params={"dataset": "ml-1m"}) as first:
        context = first.load_context()
        with session_in(project, runtime_params={"dataset": "steam"}) as second:
            second.load_context()
            for name, each in (("ml-1m", context), ("steam", second.load_context())):
                found[name] = each.catalog.get("interactions")._filepath.parent.name
    assert found == {"ml-1m": "ml-1m", "steam": "steam"}


def test_a_conf_folder_elsewhere_leaves_the_data_in_the_project(
    project_copy: Path, session_in, tmp_path: Path
) -> None:
    (project_copy / "conf").rename(tmp_path / "conf")
    with session_in(project_copy, conf_source=str(tmp_path / "conf")) as session:
        paths = session.configuration.parameters()["paths"]
    assert paths["data_root"] == str(project_copy / "data")
