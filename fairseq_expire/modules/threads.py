"""Threads of PyTorch on a CPU that sleep while they wait, as long as other processes want the same cores.

PyTorch's OpenMP threads wait for each other many times in a step, and spin meanwhile, for milliseconds before they sleep. That is
fastest on cores of their own. A thread that spins uses up its time slice, though: if another process wants its core, it
is paused just when there is work for it, and all others wait.

GNU's OpenMP, with which PyTorch is built on Linux, spins only briefly once it has more threads than there are cores. So while cores
are shared, there are more threads here, which never get any work.
"""

import os
import sys
import threading
import time
from pathlib import Path

import torch

# Elements that one thread works on, at least; so many for each thread make PyTorch use them all.
GRAIN = 1 << 15
# What users set themselves to choose how threads wait; that is left alone.
CHOSEN_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
# Seconds between two looks, and how often in a second a thread is paused for another one where cores are shared: some
# 50 times on cores of its own, from 170 on beside a busy process.
SECONDS = 1.0
PAUSED = 100
# So many looks without such a thread end it.
CALM = 10

_lock = threading.Lock()
_watched = False


def let_waiting_threads_sleep() -> bool:
    """Starts to watch whether other processes want the cores that PyTorch's threads run on, and lets these sleep while they wait
    as long as that is so.

    ``OMP_WAIT_POLICY=passive``, set before torch is imported, lets them sleep always.

    Returns:
        True if it did so. False with one thread, on other systems than Linux, if the environment says how threads wait, and on a
        second call.
    """
    global _watched
    threads = torch.get_num_threads()
    if threads < 2 or not sys.platform.startswith("linux") or any(name in os.environ for name in CHOSEN_BY_USER):
        return False
    with _lock:
        if _watched:
            return False
        _watched = True
    threading.Thread(target=_watch, args=(threads,), name="watching shared cores", daemon=True).start()
    return True


def _watch(threads: int) -> None:
    shared, pools = Shared(), IdlePools(threads)
    while True:
        time.sleep(SECONDS)
        if shared.look(pauses()):
            pools.start()
        else:
            pools.stop()


def pauses() -> dict[str, int]:
    """How often each thread of this process has been paused for another one, by its number."""
    found = {}
    for folder in Path("/proc/self/task").iterdir():
        try:
            status = (folder / "status").read_text()
        # It has just ended.
        except OSError:
            continue
        found[folder.name] = int(status.rpartition("nonvoluntary_ctxt_switches:")[2])
    return found


class Shared:
    """Tells from the pauses of threads, look by look, whether cores are shared with other processes."""

    def __init__(self):
        self._before: dict[str, int] = {}
        self._calm = CALM

    def look(self, paused: dict[str, int]) -> bool:
        """Takes what :func:`pauses` gives ``SECONDS`` after the last look."""
        often = any(count - self._before.get(thread, count) >= PAUSED * SECONDS for thread, count in paused.items())
        self._before = paused
        self._calm = 0 if often else self._calm + 1
        return self._calm < CALM


class IdlePools:
    """As many OpenMP threads without work as it takes to have more threads than cores.

    Args:
        threads: that PyTorch uses.
    """

    def __init__(self, threads: int):
        # Each thread that calls PyTorch has a pool of its own, of so many more.
        self._more = threads - 1
        self._count = max(1, -(-(len(os.sched_getaffinity(0)) - self._more) // self._more))
        self._pools: list[threading.Thread] = []
        self._end = threading.Event()

    def start(self) -> None:
        """Returns when they are there."""
        if self._pools:
            return
        self._end = threading.Event()
        ready = threading.Semaphore(0)
        self._pools = [
            threading.Thread(target=self._pool, args=(ready, self._end), name="idle OpenMP pool", daemon=True)
            for _ in range(self._count)
        ]
        for pool in self._pools:
            pool.start()
        for _ in self._pools:
            ready.acquire()

    def stop(self) -> None:
        """Returns when they are gone: a pool ends with the thread that it belongs to."""
        self._end.set()
        for pool in self._pools:
            pool.join()
        self._pools = []

    def _pool(self, ready: threading.Semaphore, end: threading.Event) -> None:
        torch.empty(2 * (self._more + 1) * GRAIN, dtype=torch.int8).neg_()
        ready.release()
        end.wait()
