"""Allocator settings, in a process of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource, torch
from recpipe.accelerate.allocator import keep_freed_memory
assert keep_freed_memory()
for _ in range(2):
    torch.ones(1 << 22)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    assert torch.ones(1 << 22).sum() == 1 << 22
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_freed_memory_is_used_again_without_page_faults():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4096  # pages of one of the 20 tensors
