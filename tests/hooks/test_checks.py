"""What parameter files may not say, refused with key and file before the first node runs."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import ibis
import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro.runner import SequentialRunner

from recpipe.config import Configuration, DataPaths, RunConfig, build_config
from recpipe.config.schema import DatasetConfig, EmbedConfig, SemanticIdsConfig, StudyConfig
from recpipe.data.protocol import Protocol
from recpipe.hooks import ChecksHooks
from recpipe.hooks.checks import check_types
from recpipe.pipelines.ingest import fetch_source, ingest_log

BLOCK: dict[str, Any] = {
    "source": "files",
    "files": {"interactions": {"name": "log.csv", "url": "https://example.org/log.csv"}, "items": "items.csv"},
    "options": {"columns": {"user_id": "u", "item_id": "i"}},
    "bad_rows": "drop",
    "steps": [],
}
ENGINE: dict[str, Any] = {"name": "duckdb", "memory_limit": "1GB", "settings": {}}


# Files, read and typed


@pytest.fixture
def check_files(project_copy: Path):
    """`check_files({"train.yml": "..."}, overrides)`: files of conf/local/parameters beside those of conf/base."""

    def check(files: dict[str, str], overrides: dict[str, Any] | None = None) -> None:
        for name, text in files.items():
            file = project_copy / "conf" / "local" / "parameters" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        configuration = Configuration.read(project_copy / "conf", None, overrides)
        check_types(configuration, [configuration.run("sasrec"), configuration.run("svd")])

    return check


def test_the_files_of_the_project_pass_for_every_data_set_and_model(project: Path) -> None:
    files = Configuration.read(project / "conf", "base").files
    for dataset in files["datasets"]:
        configuration = Configuration(files, {"dataset": dataset})
        check_types(configuration, [configuration.run(name) for name in configuration.model_names])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("train.yml", "train: {log_every: many}", "models.sasrec.train.log_every {file} cannot be 'many'"),
        ("models/sasrec.yml", "models: {sasrec: {train: {ema: high}}}", "sasrec.train.ema {file}"),
        ("train.yml", "train: {loss: full_softmax}", "models.sasrec.train.loss {file} cannot be 'full_softmax'"),
        ("side.yml", "side: {items: 3}", "models.sasrec.side.items {file} cannot be 3"),
        ("report.yml", "report: {examples: 0}", "report.examples {file} cannot be 0"),
        ("evaluate.yml", "evaluate: {recommend: '20'}", "evaluate.recommend {file} cannot be '20'"),
        ("protocol.yml", "protocol: {seed: '42'}", "protocol.seed {file} cannot be '42'"),
        ("geometry.yml", "geometry: {nulls: 1}", "geometry.nulls {file} cannot be 1"),
        ("ties.yml", "ties: {permutations: -1}", "ties.permutations {file} cannot be -1"),
        ("ensemble.yml", "ensemble: {constant: high}", "ensemble.constant {file} cannot be 'high'"),
        ("embed.yml", "embed: {refit: 1}", "embed.refit {file} cannot be 1"),
        ("cold_users.yml", "cold_users: {bins: many}", "cold_users.bins {file} cannot be 'many'"),
        ("studies.yml", "context: {users: some}", "context.users {file} cannot be 'some'"),
        (
            "semantic_ids.yml",
            "semantic_ids: {kinds: {text: {extra_codes: 0}}}",
            "semantic_ids.kinds.text.extra_codes {file} cannot be 0",
        ),
        (
            "datasets/online_retail.yml",
            "datasets: {online_retail: {bad_rows: 3}}",
            "datasets.online_retail.bad_rows {file} cannot be 3",
        ),
        (
            "datasets/online_retail.yml",
            "datasets: {online_retail: {protocol: {history: long}}}",
            "protocol.history {file} cannot be 'long'",
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_key_and_file(check_files, file, text, message) -> None:
    with pytest.raises(ValueError) as caught:
        check_files({file: text})
    assert message.format(file=f"(conf/local/parameters/{file})") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "datasets/online_retail.yml",
            "datasets: {online_retail: {bad_row: drop}}",
            "unknown setting 'datasets.online_retail.bad_row' {file} (did you mean 'bad_rows'?); there are title",
        ),
        (
            "datasets/online_retail.yml",
            "datasets: {online_retail: {content: {txt: {template: x}}}}",
            "unknown setting 'datasets.online_retail.content.txt' {file}",
        ),
        (
            "train.yml",
            "train: {max_epoch: 3}",
            "unknown setting 'models.sasrec.train.max_epoch' {file} (did you mean 'max_epochs'?)",
        ),
        (
            "models/sasrec.yml",
            "models: {sasrec: {side: {vector: text}}}",
            "unknown setting 'models.sasrec.side.vector' {file} (did you mean 'vectors'?)",
        ),
        ("report.yml", "report: {example: 3}", "unknown setting 'report.example' {file} (did you mean 'examples'?)"),
        ("protocol.yml", "protocol: {splits: ratio}", "'protocol.splits' {file} (did you mean 'split'?)"),
        ("cold_users.yml", "cold_users: {segment: none}", "'cold_users.segment' {file} (did you mean 'segments'?)"),
        (
            "datasets/online_retail.yml",
            "datasets: {online_retail: {cold_users: {noveltie: 1.0}}}",
            "'cold_users.noveltie' {file} (did you mean 'novelty'?)",
        ),
        (
            "semantic_ids.yml",
            "semantic_ids: {kinds: {text: {collision: keep}}}",
            "'semantic_ids.kinds.text.collision' {file} (did you mean 'collisions'?)",
        ),
        ("studies.yml", "studies: {length: {value: 3}}", "'studies.length.value' {file} (did you mean 'values'?)"),
    ],
)
def test_an_unknown_key_is_refused_with_its_file_and_the_nearest(check_files, file, text, message) -> None:
    with pytest.raises(ValueError) as caught:
        check_files({file: text})
    assert message.format(file=f"(conf/local/parameters/{file})") in str(caught.value)


def test_a_wrong_value_of_the_command_line_is_said_to_be_of_it(check_files) -> None:
    with pytest.raises(ValueError, match=r"models.sasrec.train.window \(command line\) cannot be 'long'"):
        check_files({}, {"train": {"window": "long"}})
    check_files({}, {"train": {"window": 50}})


# Values, seen by the library


def before_run(**parameters: Any) -> None:
    """The checks of a run whose nodes read these parameters; ``__`` stands for the dot in their names."""
    given = {f"params:{name.replace('__', '.')}": value for name, value in parameters.items()}
    catalog = DataCatalog({name: MemoryDataset(value) for name, value in given.items()})
    nodes = [Node(lambda *_: None, list(given), "done", name="node")]
    ChecksHooks().before_pipeline_run(Pipeline(nodes), catalog)


def check(block: Any, engine: dict[str, Any]) -> None:
    dataset = build_config(DatasetConfig, block, where="datasets.mine")
    before_run(datasets__mine=dataset, ingest={"engine": engine})


def test_a_right_block_passes() -> None:
    check(BLOCK, ENGINE)
    check({"source": "files", "files": {"interactions": "log.csv"}}, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bad_rows": "dorp"}, r"datasets\.mine\.bad_rows 'dorp' \(did you mean 'drop'\?\); choose quarantine, drop"),
        ({"bad_rows": None}, r"datasets\.mine\.bad_rows cannot be None"),
        ({"source": "movielense"}, r"'movielense' \(did you mean 'movielens'\?\).*amazon, files, movielens"),
        ({"options": {"colums": {}}}, r"unknown option of source files 'colums' \(did you mean 'columns'\?\)"),
        ({"files": {"interactions": {"name": "a", "checksums": "md5:0"}}}, r"interactions 'checksums' .*'checksum'"),
        ({"files": {"interactions": {"url": "https://example.org/a"}}}, "files.interactions names no file"),
        ({"files": {"interactions": "a", "item": "b"}}, r"role in datasets\.mine\.files 'item' .*'items'"),
        ({"steps": [{"step": "min_event"}]}, r"unknown step 'min_event' \(did you mean 'min_events'\?\)"),
        ({"steps": [{"step": "min_events", "user": 5}]}, "user"),
        ({"content": {"image": {"form": "posters.zip"}}}, r"form.*\(did you mean 'from'\?\)"),
    ],
)
def test_a_wrong_block_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(copy.deepcopy(BLOCK) | change, ENGINE)


def test_an_empty_block_is_refused() -> None:
    with pytest.raises(ValueError, match=r"datasets\.mine must be a block"):
        check(None, ENGINE)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"memory_limits": "4GB"}, r"ingest.engine 'memory_limits' \(did you mean 'memory_limit'\?\)"),
        ({"name": "duckbd"}, r"unknown ingest.engine.name 'duckbd' \(did you mean 'duckdb'\?\); choose duckdb, spark"),
    ],
)
def test_a_wrong_engine_is_refused(engine: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(BLOCK, engine)


def test_the_settings_of_the_engine_reach_the_connection_that_reads(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "log.csv").write_text("u,i\na,1\na,2\n")
    (tmp_path / "mine" / "items.csv").write_text("item_id,title\n1,One\n")
    engine = {"threads": 1, "settings": {"default_null_order": "nulls_first"}}
    dataset = build_config(DatasetConfig, BLOCK, where="datasets.mine")
    paths = DataPaths(tmp_path, tmp_path, "mine")
    log = ingest_log(fetch_source(dataset, paths), dataset, {"engine": engine}, paths)[0]
    (found,) = ibis.get_backend(log).raw_sql("SELECT current_setting('default_null_order')").fetchall()
    assert str(found[0]).lower() == "nulls_first"


SASREC = RunConfig(name="sasrec", dataset="mine", type="sasrec", settings={}, train={}, side={}, cold_users={})
CLOCK = replace(SASREC, name="clock", type="hstu", settings={"time_mode": "last_item"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "sasrek"}, r"unknown model type 'sasrek' \(did you mean 'sasrec'\?\)"),
        ({"settings": {"dropuot": 0.1}}, r"'models.sasrec.dropuot' \(did you mean 'dropout'\?\)"),
        ({"settings": {"dim": "wide"}}, "models.sasrec.dim cannot be 'wide'"),
        ({"settings": {"dim": 10, "heads": 3}}, "not a multiple of heads"),
        ({"settings": {"norm": "past"}}, r"^models\.sasrec\.norm is 'past'; allowed: pre, post"),
        ({"type": "svd", "settings": {"factors": 0}}, r"^models\.sasrec\.factors is 0; it must be at least 1"),
        ({"train": {"optimiser": {"name": "adam", "learning_rat": 0.1}}}, "learning_rat"),
        ({"train": {"optimiser": {"name": "adan"}}}, r"'adan'.*adam"),
        ({"train": {"loss": {"name": "full_softmax", "chunks": 3}}}, "full_softmax .train.loss. 'chunks'"),
        ({"train": {"loss": {"name": "full_softmux"}}}, r"'full_softmux'.*full_softmax"),
        ({"train": {"schedule": {"name": "cosine", "end": 0}}}, "end"),
        ({"train": {"schedule": {"name": "cosinus"}}}, r"'cosinus'.*cosine"),
        ({"train": {"layout": "paked"}}, "train.layout is 'paked'; allowed: padded, packed"),
        ({"type": "hstu", "train": {"max_epochs": 0}}, "train.max_epochs is 0"),
        ({"side": {"vector": "text"}}, r"'models.sasrec.side.vector' \(did you mean 'vectors'\?\)"),
        ({"type": "popular", "side": {"vectors": "text"}}, "type popular read no side information"),
        ({"cold_users": {"novelty": 2}}, r"cold_users\.novelty is 2; give a number from 0 to 1"),
        ({"cold_users": {"smoothing": "much"}}, r"cold_users\.smoothing cannot be 'much'"),
        ({"cold_users": {"segment": "none"}}, r"'cold_users.segment' \(did you mean 'segments'\?\)"),
    ],
)
def test_settings_that_a_model_or_its_training_cannot_take_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        before_run(models__sasrec=replace(SASREC, **change), protocol=Protocol(dataset="mine"))


def test_a_model_without_gradients_may_have_any_optimiser() -> None:
    before_run(models__svd=replace(SASREC, type="svd", train={"optimiser": {"name": "adan"}}))


@pytest.mark.parametrize("time", ["none", "last_item", "query"])
def test_a_model_that_uses_more_of_time_than_the_protocol_allows_is_refused(time: str) -> None:
    if time == "none":
        with pytest.raises(ValueError, match=r"clock uses time as last_item and protocol.time is none"):
            before_run(models__clock=CLOCK, protocol=Protocol(dataset="mine", time=time))
    else:
        before_run(models__clock=CLOCK, protocol=Protocol(dataset="mine", time=time))


def test_side_information_that_uses_time_needs_a_protocol_that_allows_it() -> None:
    hours = replace(SASREC, side={"events": "hour"})
    with pytest.raises(ValueError, match=r"sasrec uses time as last_item and protocol.time is none"):
        before_run(models__sasrec=hours, protocol=Protocol(dataset="mine"))
    before_run(models__sasrec=hours, protocol=Protocol(dataset="mine", time="last_item"))


def test_a_study_of_a_setting_that_a_model_does_not_have_is_refused() -> None:
    study = StudyConfig(name="length", setting="train.window", values="8+16")
    svd = replace(SASREC, name="svd", type="svd")
    with pytest.raises(ValueError, match="models of type svd have no setting train.window"):
        before_run(studies__length=study, models__svd=svd)
    with pytest.raises(ValueError, match="a study has a setting with values"):
        before_run(studies__length=StudyConfig(name="length", setting="dim"), models__sasrec=SASREC)


def test_encoders_that_do_not_exist_are_refused() -> None:
    embed = EmbedConfig(text="minilm", image="none", refit=False)
    with pytest.raises(ValueError, match=r"unknown embed.text 'minilm'.*choose tfidf"):
        before_run(embed=embed, text_encoders={"tfidf": {"kind": "tfidf"}})
    encoders = {"minilm": {"source": "hub/minilm", "poolin": "mean"}}
    with pytest.raises(ValueError, match=r"'text_encoders.minilm.poolin' \(did you mean 'pooling'\?\)"):
        before_run(embed=embed, text_encoders=encoders)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantizer": "rqvea"}, r"unknown semantic_ids.quantizer 'rqvea' \(did you mean 'rqvae'\?\)"),
        ({"gate": {"reconstructio": 0.5}}, r"'semantic_ids.kinds.text.gate.reconstructio'"),
        ({"quantizers": {"rqvae": {"type": "rqvae", "level": 3}}}, "level"),
        ({"quantizers": {"rqvae": {"levels": 3}}}, "semantic_ids.quantizers.rqvae lacks its type"),
    ],
)
def test_wrong_settings_of_semantic_ids_are_refused(project: Path, change: dict, message: str) -> None:
    block = Configuration.read(project / "conf", "base").parameters()["semantic_ids"]["kinds"]["text"]
    with pytest.raises(ValueError, match=message):
        before_run(semantic_ids__kinds__text=build_config(SemanticIdsConfig, {**block, **change}, where="ids"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train: {optimiser: {name: adam, learning_rat: 0.1}}",
            r"argument of adam .* 'learning_rat' \(did you mean 'learning_rate'\?\);.*\(conf/local/.*own.yml\)",
        ),
        (
            "models: {sasrec: {train: {loss: {chunks: 3}}}}",
            r"argument of full_softmax .* 'chunks' \(did you mean 'chunk'\?\);.*\(conf/local/parameters/own.yml\)",
        ),
        ("models: {sasrec: {dim: wide}}", r"models.sasrec.dim cannot be 'wide'.*\(conf/local/parameters/own.yml\)"),
        (
            "models: {sasrec: {dropuot: 0.3}}",
            r"'models.sasrec.dropuot' \(did you mean 'dropout'\?\);.*\(conf/local/parameters/own.yml\)",
        ),
        (
            "datasets: {online_retail: {steps: [{step: k_core, user: 5}]}}",
            r"argument of k_core 'user' \(did you mean 'users'\?\);.*\(conf/local/parameters/own.yml\)",
        ),
        (
            "datasets: {online_retail: {options: {good: 3}}}",
            r"'good' \(did you mean 'goods'\?\).*\(conf/local/parameters/own.yml\)",
        ),
        (
            "train: {schedule: {name: cosine, warmup: 5}}",
            r"argument of cosine .* 'warmup' \(did you mean 'warmup_steps'\?\);.*\(conf/local/parameters/own.yml\)",
        ),
        ("train: {log_every: many}", r"train.log_every \(conf/local/parameters/own.yml\) cannot be 'many'"),
    ],
)
def test_a_wrong_file_stops_a_run_before_anything_is_written(
    project_copy, session_in, monkeypatch, text, message
) -> None:
    file = project_copy / "conf" / "local" / "parameters" / "own.yml"
    file.parent.mkdir()
    file.write_text(text)
    monkeypatch.setattr(SequentialRunner, "run", lambda *_, **__: pytest.fail("nodes ran"))
    with session_in(project_copy) as session, pytest.raises(ValueError, match=message):
        session.run(pipeline_names=["ingest", "train"])
    assert sorted(path.name for path in (project_copy / "data").iterdir()) == ["01_raw"]


@pytest.mark.parametrize(
    ("params", "setting"),
    [
        ({"evaluate": {"recommend": 50}}, "evaluate.recommend is 50 and the beam of tiger 20"),
        ({"evaluate": {"submission": {"top": 30}}}, "evaluate.submission.top is 30 and the beam of tiger 20"),
        ({"protocol": {"cutoffs": [10, 100]}}, "the largest of protocol.cutoffs is 100 and the beam of tiger 20"),
        ({"models": {"tiger": {"beam": 10}}}, "evaluate.recommend is 20 and the beam of tiger 10"),
        ({"evaluate": {"recommend": 50}, "models": {"tiger": {"beam": 50}}}, "nodes ran"),
        ({"evaluate": {"recommend": 50}, "model": "sasrec"}, "nodes ran"),
        (
            {"models": {"parallel_tiger": {"search": "beam", "beam": 10}}, "model": "parallel_tiger"},
            "evaluate.recommend is 20 and the beam of parallel_tiger 10",
        ),
    ],
)
def test_lists_longer_than_the_beam_are_refused_before_training(project_copy, session_in, monkeypatch, params, setting):
    def run(*_: object, **__: object) -> None:
        raise ValueError("nodes ran")

    monkeypatch.setattr(SequentialRunner, "run", run)
    params = {"model": "tiger", **params}
    pipelines = ["ingest", "embed", "semantic_ids", "train", "evaluate"]
    with session_in(project_copy, runtime_params=params) as session, pytest.raises(ValueError, match=setting):
        session.run(pipeline_names=pipelines)
