"""Lines of a run: a real Kedro pipeline through a real runner, by a clock that its nodes move."""

from __future__ import annotations

import io
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline
from kedro.runner import SequentialRunner, ThreadRunner
from kedro_datasets.json import JSONDataset

from recpipe.hooks.console import ConsoleHooks, step_label
from recpipe.progress import current_step


class Clock:
    """Seconds since the test began."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def during(self, seconds: float, fails: BaseException | None = None) -> Callable[..., int]:
        """A node that takes so long."""

        def node(*inputs: int) -> int:
            self.now += seconds
            if fails is not None:
                raise fails
            return 1

        return node


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """What the console hooks and progress have logged so far."""
    with caplog.at_level(logging.INFO, logger="recpipe"):
        yield lambda: [each.getMessage() for each in caplog.records if each.name.startswith("recpipe.")]


def run(hooks: ConsoleHooks, pipeline: Pipeline, catalog: DataCatalog, runner=None) -> None:
    """As KedroSession.run calls the hooks."""
    manager = _create_hook_manager()
    manager.register(hooks)
    about = {"run_params": {}, "pipeline": pipeline, "catalog": catalog}
    manager.hook.before_pipeline_run(**about)
    try:
        result = (runner or SequentialRunner()).run(pipeline, catalog, manager)
    except Exception as error:
        manager.hook.on_pipeline_error(error=error, **about)
        raise
    manager.hook.after_pipeline_run(run_result=result, **about)


def three_steps(clock: Clock, *, last: Callable[..., int] | None = None) -> Pipeline:
    return Pipeline(
        [
            Node(clock.during(18.24), None, "a", name="embed_text"),
            Node(clock.during(0.04), "a", "b", name="fit_quantizer", namespace="text"),
            Node(last or clock.during(150), "b", "c", name="train_model", namespace="sasrec"),
        ]
    )


@pytest.fixture
def catalog(tmp_path: Path) -> DataCatalog:
    """Where what the first steps write is kept."""
    names = ("a", "b", "c")
    return DataCatalog({name: JSONDataset(filepath=str(tmp_path / f"{name}.json")) for name in names})


@pytest.mark.parametrize(
    "node_name, label",
    [
        ("embed_text", "embed text"),
        ("ingest_log", "ingest log"),
        ("ingest.ingest_log", "ingest log"),
        ("text.embed_text", "embed text"),
        ("sasrec.train_model", "train sasrec"),
        ("popular_recent.evaluate_model", "evaluate popular_recent"),
        ("sasrec.vary_model", "vary sasrec"),
        ("text.fit_quantizer", "fit quantizer (text)"),
        ("text_image.measure_ids", "measure ids (text image)"),
        ("sasrec.permute_ties", "permute ties (sasrec)"),
        ("ensemble.evaluate_ensemble", "evaluate ensemble"),
        ("train_model", "train model"),
    ],
)
def test_labels(node_name, label) -> None:
    assert step_label(node_name) == label


def test_every_step_has_one_line_when_it_ends_and_the_run_one(clock, lines, catalog) -> None:
    run(ConsoleHooks(clock=clock), three_steps(clock), catalog)
    assert lines() == [
        "[1/3] embed text                    18.2 s",
        "[2/3] fit quantizer (text)           0.0 s",
        "[3/3] train sasrec              2 min 30 s",
        "3 steps in 2 min 48 s",
    ]


def test_progress_in_a_node_belongs_to_its_step(clock, lines, catalog) -> None:
    seen: list[str] = []
    run(ConsoleHooks(clock=clock), three_steps(clock, last=lambda _: seen.append(current_step()) or 1), catalog)
    assert seen == ["train sasrec"] and current_step() == ""


def test_a_step_that_fails_is_named_and_how_to_go_on(clock, lines, catalog) -> None:
    hooks = ConsoleHooks(clock=clock)
    with pytest.raises(ValueError, match="no such loss"):
        run(hooks, three_steps(clock, last=clock.during(2, fails=ValueError("no such loss"))), catalog)
    assert lines()[-1] == "[3/3] train sasrec          failed after 2.0 s"
    assert hooks.resume_argument() == '--from-nodes "sasrec.train_model"'


def test_a_step_whose_inputs_cannot_be_read_is_named(clock, lines, tmp_path) -> None:
    (tmp_path / "raw.json").write_text("{")
    catalog = DataCatalog({"raw": JSONDataset(filepath=str(tmp_path / "raw.json"))})
    with pytest.raises(Exception, match=r"raw\.json"):
        run(ConsoleHooks(clock=clock), Pipeline([Node(abs, "raw", "a", name="ingest_log")]), catalog)
    assert lines() == ["[1/1] ingest log  failed after 0.0 s"]


def test_resuming_begins_where_everything_that_is_needed_is_on_disk(clock, lines, catalog) -> None:
    hooks = ConsoleHooks(clock=clock)
    partly = DataCatalog({"a": catalog["a"]})  # b is kept in memory only
    with pytest.raises(ValueError):
        run(hooks, three_steps(clock, last=clock.during(1, fails=ValueError("no"))), partly)
    assert hooks.resume_argument() == '--from-nodes "text.fit_quantizer"'


def test_where_the_first_step_fails_there_is_nothing_to_resume(clock, lines) -> None:
    hooks = ConsoleHooks(clock=clock)
    first = Pipeline([Node(clock.during(1, fails=ValueError("no")), None, "a", name="fetch_source")])
    with pytest.raises(ValueError):
        run(hooks, first, DataCatalog())
    assert hooks.resume_argument() is None


def test_ctrl_c_leaves_no_step_open(clock, lines, catalog) -> None:
    hooks = ConsoleHooks(clock=clock)
    with pytest.raises(KeyboardInterrupt):
        run(hooks, three_steps(clock, last=clock.during(7, fails=KeyboardInterrupt())), catalog)
    hooks.close()
    assert lines()[-1] == "[3/3] train sasrec          stopped after 7.0 s"
    assert hooks.resume_argument() == '--from-nodes "sasrec.train_model"'


def test_a_second_run_counts_anew(clock, lines, catalog) -> None:
    hooks = ConsoleHooks(clock=clock)
    for _ in range(2):
        run(hooks, three_steps(clock), catalog)
    assert lines()[4].startswith("[1/3] embed text") and lines()[-1] == "3 steps in 2 min 48 s"


def test_a_step_that_takes_long_is_mentioned_while_it_runs(clock, lines) -> None:
    def slow() -> int:
        clock.now = 5.0
        deadline = time.monotonic() + 20
        while not any("running" in line for line in lines()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return 1

    run(ConsoleHooks(clock=clock), Pipeline([Node(slow, None, "a", name="ingest_log")]), DataCatalog())
    assert lines() == ["[1/1] ingest log: running for 5 s", "[1/1] ingest log           5.0 s", "1 step in 5.0 s"]


def test_steps_in_several_threads(clock, lines) -> None:
    nodes = [Node(lambda: 1, None, name, name=name) for name in "abcd"]
    run(ConsoleHooks(clock=clock), Pipeline(nodes), DataCatalog(), ThreadRunner(max_workers=4))
    assert sorted(line[:5] for line in lines()[:-1]) == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    assert {line.split()[1] for line in lines()[:-1]} == set("abcd")
    assert lines()[-1].startswith("4 steps")


def test_nothing_is_said_where_nothing_is_logged(clock, catalog, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="recpipe"):
        run(ConsoleHooks(clock=clock), three_steps(clock), catalog)
    assert caplog.records == []


def test_kedro_run_shows_steps_and_no_node_signatures(whole_run: tuple[Path, CompletedProcess]) -> None:
    _, done = whole_run
    shown = done.stderr.splitlines()
    steps = [line for line in shown if re.search(r"\[ ?\d+/\d+\] [^:]+  +(\d+\.\d|\d+ min \d+) s$", line)]
    total = int(re.search(r"/(\d+)\]", steps[0])[1])
    assert len(steps) == total > 10
    assert [int(re.search(r"\[ ?(\d+)/", line)[1]) for line in steps] == list(range(1, total + 1))
    assert any("] train sasrec  " in line for line in steps)
    assert any(re.search(rf"INFO +{total} steps in ", line) for line in shown)
    for of_kedro in ("]) -> [", "Running node", "Completed", "tasks", "kedro.", "Kedro project", "mlflow.store"):
        assert of_kedro not in done.stderr, of_kedro


def test_training_ends_with_one_line_on_what_it_came_to(whole_run: tuple[Path, CompletedProcess]) -> None:
    _, done = whole_run
    assert re.search(
        r"train sasrec: \d+ epochs in [^,]+, best valid_ndcg@10 0\.\d{4} in epoch \d+, "
        r"last 0\.\d{4} with loss \d+\.\d{4}; ended by max_epochs \d+",
        done.stderr,
    )


@pytest.mark.parametrize(
    ("error", "ending"), [(RuntimeError("Query interrupted"), "stopped after"), (ValueError("no"), "failed after")]
)
def test_a_query_that_ctrl_c_ended_is_stopped_and_did_not_fail(clock, catalog, lines, error, ending) -> None:
    with pytest.raises(type(error)):
        run(ConsoleHooks(clock=clock), three_steps(clock, last=clock.during(5, error)), catalog)
    assert f"{ending} 5.0 s" in lines()[-1]


def test_log_lines_cannot_command_a_terminal(clock, catalog, capsys) -> None:
    """Whatever titles and ids they quote; line breaks and thin spaces stay."""
    factory = logging.getLogRecordFactory()
    try:
        run(ConsoleHooks(clock=clock), three_steps(clock), catalog)
        handler = logging.StreamHandler(stream := io.StringIO())
        logger = logging.getLogger("recpipe.of_a_test")
        logger.addHandler(handler)
        logger.warning("title %s", "a\x1b[2J\x9b31m\u202eb\r\u2066c\ud800")
        logger.warning("1\u202f000 rows\nof %s", "b")
        logger.removeHandler(handler)
    finally:
        logging.setLogRecordFactory(factory)
    replaced = "a\ufffd[2J\ufffd31m\ufffdb\ufffd\ufffdc\ufffd"
    assert stream.getvalue() == f"title {replaced}\n1\u202f000 rows\nof b\n"
