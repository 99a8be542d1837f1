"""What dlrun sets for the whole process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from dlrun.device import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    tensors = [torch.ones(5 << 20, dtype=torch.uint8) for _ in range(8)]
    del tensors
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*words: str, **more: str) -> int:
    """Page faults of ten steps that allocate 40 MiB and free it."""
    env = {name: value for name, value in os.environ.items() if "MALLOC" not in name} | more
    done = subprocess.run([sys.executable, "-c", FAULTS, *words], env=env, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(os, "confstr"), reason="glibc")
def test_freed_memory_is_kept() -> None:
    """Steps that allocate the same again fault in no page twice, unless the user has settings of their own."""
    if "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""):
        pytest.skip("another C library")
    assert faults("keep") < 100
    assert faults("keep", MALLOC_MMAP_THRESHOLD_="65536") > 10_000  # 10 x 8 x 1,280 pages
