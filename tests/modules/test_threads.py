"""Waiting threads sleep while other processes use their cores, and only then."""

import functools
import os
import subprocess
import sys

import pytest

from fairseq_expire.modules.threads import CALM, PAUSED, SharedCores, pauses

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU's OpenMP alone can be told so late")

# Prints how much time other threads than the main one take while that one sleeps between short parallel regions, in
# shares of the time it sleeps: without idle pools, with them, and after them.
SPINNING = """
import time, torch
torch.set_num_threads(2)
from fairseq_expire.modules.threads import IdlePools

x = torch.zeros(1 << 17)

def share():
    x.neg_()
    slept, start = 0.0, time.process_time()
    for _ in range(30):
        x.neg_()
        before = time.perf_counter()
        time.sleep(0.001)
        slept += time.perf_counter() - before
    return (time.process_time() - start) / slept

pools = IdlePools(2)
print(share())
pools.start()
pools.start()
print(share())
pools.stop()
pools.stop()
print(share())
"""

# Prints what two calls return, and whether idle pools are there soon, with a busy process on every core.
WATCHING = """
import os, subprocess, sys, threading, time, torch
torch.set_num_threads(2)
from fairseq_expire.modules import let_waiting_threads_sleep
print(let_waiting_threads_sleep(), let_waiting_threads_sleep())
busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
try:
    x, end = torch.zeros(1 << 20), time.monotonic() + float(sys.argv[1])
    found = False
    while not found and time.monotonic() < end:
        x.neg_()
        found = any(thread.name == "idle OpenMP pool" for thread in threading.enumerate())
finally:
    for process in busy:
        process.kill()
print(found)
"""

# Ends while an idle pool is made, with busy processes on all cores.
ENDING = """
import itertools, os, subprocess, sys, threading, time, torch
torch.set_num_threads(2)
from fairseq_expire.modules import threads
threads.SECONDS, paused = 0.01, itertools.count(0, 1000)
threads.pauses = lambda: {"main": next(paused)}
busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * len(os.sched_getaffinity(0)))]
try:
    time.sleep(0.5)
    assert threads.let_waiting_threads_sleep()
    while not any(thread.name == "idle OpenMP pool" for thread in threading.enumerate()):
        pass
finally:
    # After the end of this process.
    subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {' '.join(str(process.pid) for process in busy)}"])
"""


@functools.cache
def run(script, *arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(
        command, env={**clean, **environment}, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.splitlines()


@on_linux
def test_threads_spin_only_without_idle_pools():
    before, with_pools, after = map(float, run(SPINNING)[-3:])
    assert with_pools < 0.5 * min(before, after)


@on_linux
def test_busy_neighbours_are_noticed():
    assert run(WATCHING, "60")[-2:] == ["True False", "True"]


@on_linux
def test_a_process_may_end_at_any_time():
    run(ENDING)


@on_linux
@pytest.mark.parametrize(
    "name, value", [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "100000"), ("OMP_NUM_THREADS", "2")]
)
def test_not_against_the_user(name, value):
    did = name == "OMP_NUM_THREADS"
    assert run(WATCHING, "0", **{name: value})[-2] == f"{did} False"


@on_linux
def test_pauses_are_those_of_all_threads():
    found = pauses()
    assert str(os.getpid()) in found and len(found) == len(os.listdir("/proc/self/task")) and min(found.values()) >= 0


def test_shared_cores():
    shared, counts = SharedCores(), {"main": 500, "other": 20}

    def look(main, other):
        counts["main"] += main
        counts["other"] += other
        return shared.look(dict(counts))

    # What was before the first look does not count.
    assert not look(0, 0)
    assert not look(PAUSED - 1, PAUSED - 1)
    assert look(0, PAUSED)
    assert all(look(0, 0) for _ in range(CALM - 1))
    assert not look(0, 0)
    assert look(PAUSED, 0) and look(0, 0)
    # A thread that has ended, and a new one.
    del counts["other"]
    assert shared.look({**counts, "new": 10**6})
