"""Examples of docstrings run and print what they say: those of the public API on bundles of a finished run."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import recpipe

EXAMPLES = (
    "recpipe.serving.rules",
    "recpipe.decoding.beam",
    "recpipe.decoding.exact",
    "recpipe.layers.top_k",
    "recpipe.semantic_ids.prefix_tree",
    "recpipe.semantic_ids.quantizer",
    "recpipe.semantic_ids.collisions",
)


@pytest.fixture
def finished_run(whole_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory of the examples: ``data`` is what `kedro run --env test` left."""
    (tmp_path / "data").symlink_to(whole_run[0] / "data" / "test", target_is_directory=True)
    monkeypatch.chdir(tmp_path)


def run_examples(module_name: str, **names: object) -> int:
    """Run all examples of a module with ``names`` besides its own; return their number."""
    module = importlib.import_module(module_name)
    examples = [test for test in doctest.DocTestFinder().find(module, extraglobs=names) if test.examples]
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in examples:
        output: list[str] = []
        runner.run(test, out=output.append)
        assert not runner.failures, "".join(output)
    return len(examples)


@pytest.mark.parametrize("module_name", EXAMPLES)
def test_examples_of_a_module_print_what_they_say(module_name: str) -> None:
    assert run_examples(module_name)


@pytest.mark.slow
def test_examples_of_the_public_api_print_what_they_say(finished_run: None) -> None:
    model = recpipe.load_bundle("data/06_models/online_retail/sasrec")
    assert run_examples("recpipe.serving.model", model=model) >= 4  # load_bundle, recommend, score, explain
