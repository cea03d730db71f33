import functools
import os
import subprocess
import sys

import pytest
import torch

# Prints how much time other threads than the main one took while that one slept between short parallel regions, in
# shares of the time it slept.
SCRIPT = """
import os, resource, sys, time, torch
from fairseq_expire.modules import let_waiting_threads_sleep
torch.set_num_threads(2)
did = let_waiting_threads_sleep() if sys.argv[1] == "sleep" else None
again = let_waiting_threads_sleep() if sys.argv[1] == "sleep" else None
x = torch.zeros(1 << 17)
slept = 0.0
x.neg_()
start = time.process_time()
for _ in range(50):
    x.neg_()
    before = time.perf_counter()
    time.sleep(0.001)
    slept += time.perf_counter() - before
print(did, again, (time.process_time() - start) / slept)
"""

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU's OpenMP alone can be told so late")


@functools.lru_cache(maxsize=None)
def run(mode, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", SCRIPT, mode]
    out = subprocess.run(command, env={**clean, **environment}, stdout=subprocess.PIPE, text=True, check=True).stdout
    did, again, share = out.splitlines()[-1].split()
    return did, again, float(share)


@on_linux
def test_threads_that_wait_use_little_time():
    spinning, sleeping = run("spin")[2], run("sleep")[2]
    assert sleeping < 0.5 * spinning


@on_linux
def test_once_and_not_against_the_user():
    assert run("sleep")[:2] == ("True", "False")
    assert run("sleep", OMP_WAIT_POLICY="active")[:2] == ("False", "False")
    assert run("sleep", GOMP_SPINCOUNT="100000")[:2] == ("False", "False")
