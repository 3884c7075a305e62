"""Allocator settings, in a process of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource, torch
from recpipe.accelerate import keep_freed_memory
torch.set_num_threads(1)
assert keep_freed_memory()
for step in range(23):
    if step == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    assert torch.ones(1 << 24).sum() == 1 << 24
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_freed_memory_is_used_again_without_page_faults():
    process = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    pages = 1 << 14  # of a tensor; when the heap grows by M_TOP_PAD, those of four more are touched for the first time
    assert int(process.stdout) <= 10 * pages  # half of the 20 tensors; without the setting all of them
