"""`kedro run` on several devices, as a user types it, and under a program that starts several processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recpipe.config import ConfigError, Configuration
from recpipe.models.registry import model_info
from recpipe.session import check_single_process
from recpipe.training.bundle import load_bundle


@pytest.mark.slow
def test_kedro_run_trains_on_two_devices(whole_run, tmp_path, project):
    shutil.copytree(whole_run[0], tmp_path / "project", symlinks=True)
    params = "model=sasrec,train.devices=2,train.device=cpu"
    run = subprocess.run(
        [sys.executable, "-m", "kedro", "run", "--env", "test", "--pipeline=train", "--params", params],
        cwd=tmp_path / "project",
        env=os.environ | {"PYTHONPATH": str(project / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("ended by max_epochs") + run.stderr.count("ended by max_epochs") == 1  # rank 0 says it
    cost = load_bundle(latest(tmp_path / "project"), accelerate=False).training["cost"]
    assert cost["devices"] == 2
    assert "devices" not in load_bundle(latest(whole_run[0])).training["cost"]


def latest(project: Path) -> Path:
    return max((project / "data/test/06_models/online_retail/sasrec/seed_42/bundle").glob("*/bundle"))


@pytest.mark.parametrize(("name", "launcher"), [("WORLD_SIZE", "torchrun"), ("SLURM_STEP_NUM_TASKS", "srun")])
def test_one_of_several_processes_is_refused_with_the_command_for_them(name, launcher):
    with pytest.raises(ConfigError, match=rf"{launcher} started 2 processes.*{launcher} .*recpipe.training.standalone"):
        check_single_process({name: "2"})
    check_single_process({name: "1"})
    check_single_process({"SLURM_NTASKS": "4"})  # of a batch script, which is one process


def test_devices_may_be_auto_on_the_command_line(project):
    for block in ({}, {"model": "sasrec"}, {"models": {"sasrec": {"train": {"devices": "auto"}}}}):
        overrides = {"train": {"devices": "auto", "num_nodes": 2}, **block}
        configuration = Configuration.read(project / "conf", None, overrides, model_info)
        assert configuration.run("sasrec").train["devices"] == "auto"
    with pytest.raises(ConfigError, match="train.num_nodes .* cannot be 'auto'"):
        Configuration.read(project / "conf", None, {"train": {"num_nodes": "auto"}}, model_info).check()
