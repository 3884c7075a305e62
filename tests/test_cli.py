"""Signals and folders that end a command before its first node."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from recpipe import __version__
from recpipe.cli import check_version, stop_at_sigterm
from recpipe.config import ConfigError
from recpipe.session import check_path


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without a signal")
def test_sigterm_stops_like_ctrl_c_and_the_second_one_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGTERM; run the same command again"), stop_at_sigterm():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("name", ["br{ace}", "br [2024] x", "sta*r", "ques?tion"])
def test_folders_that_kedro_takes_for_patterns_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "conf").mkdir(parents=True)
    if "{" not in name:  # another folder that the pattern matches
        (tmp_path / {"br [2024] x": "br 2 x", "sta*r": "star", "ques?tion": "quesXtion"}[name] / "conf").mkdir(
            parents=True
        )
    with pytest.raises(ConfigError, match="reads braces, brackets, .* as a pattern. Rename the folder"):
        check_path(tmp_path / name / "conf")


@pytest.mark.parametrize("name", ["pct%41b", "with space", "a#b'c", "ümlaut"])
def test_other_folders_are_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    check_path(tmp_path / name)
    check_path(tmp_path / "missing [1]")


@pytest.mark.parametrize(("created", "warns"), [("0.0.9", True), (__version__, False), (None, False)])
def test_settings_of_another_minor_version_are_named(
    created: str | None, warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    block = "" if created is None else f'[tool.recpipe]\nversion = "{created}"\n'
    (tmp_path / "pyproject.toml").write_text(f"[tool.kedro]\n{block}", encoding="utf-8")
    check_version(tmp_path)
    assert ("recpipe 0.0.9, and" in caplog.text) == warns


def test_a_command_outside_a_project_has_no_version_to_check(caplog: pytest.LogCaptureFixture) -> None:
    check_version(None)
    assert not caplog.text
