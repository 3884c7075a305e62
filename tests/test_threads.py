"""Threads of torch wait for each other in a short busy loop, unless the user says how they wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = "import os, recpipe; print(os.environ.get('GOMP_SPINCOUNT'))"
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.mark.parametrize(
    ("variables", "expected"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "None")]
)
def test_importing_recpipe_sets_the_busy_loop_unless_a_variable_does(variables: dict[str, str], expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
