"""CPU threads of PyTorch that sleep while they wait, as long as other processes use the same cores.

PyTorch's OpenMP threads wait for each other many times in a step. They spin for milliseconds before they sleep, which
is fastest on cores of their own. But a spinning thread uses up its time slice: if another process wants its core, the
thread is paused just when there is work for it, and all other threads wait for it.

GNU's OpenMP, with which PyTorch is built on Linux, spins only briefly once it has more threads than there are cores. So
while cores are shared, this module adds threads that never get any work.
"""

import atexit
import os
import sys
import threading
from pathlib import Path

import torch

# PyTorch splits work so that a thread gets at least this many elements; this many for each make it use all threads.
GRAIN = 1 << 15
# Environment variables by which users choose how threads wait; their choice is left alone.
CHOSEN_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
# Seconds between two looks.
SECONDS = 1.0
# A thread that is paused this often in a second shares its core: about 50 pauses come without a neighbour, 170 and more
# beside a busy process.
PAUSED = 100
# Cores count as shared until this many looks have found no such thread.
CALM = 10

_lock = threading.Lock()
_watched = False


def let_waiting_threads_sleep() -> bool:
    """Starts a watch: while other processes use the cores of PyTorch's threads, waiting threads sleep instead of spin.

    ``OMP_WAIT_POLICY=passive``, set before torch is imported, lets them sleep always.

    Returns:
        True if the watch was started. False with one thread, on systems other than Linux, if the environment says how
        threads wait, and on a second call.
    """
    global _watched
    threads = torch.get_num_threads()
    if threads < 2 or not sys.platform.startswith("linux") or any(name in os.environ for name in CHOSEN_BY_USER):
        return False
    with _lock:
        if _watched:
            return False
        _watched = True
    end = threading.Event()
    watch = threading.Thread(target=_watch, args=(threads, end), name="watching shared cores", daemon=True)
    watch.start()
    # An interpreter that ends aborts threads that are inside of PyTorch, and the process with them.
    atexit.register(_end, watch, end)
    return True


def _end(watch: threading.Thread, end: threading.Event) -> None:
    end.set()
    watch.join()


def _watch(threads: int, end: threading.Event) -> None:
    shared, pools = SharedCores(), IdlePools(threads)
    while not end.wait(SECONDS):
        if shared.look(pauses()):
            pools.start()
        else:
            pools.stop()
    pools.stop()


def pauses() -> dict[str, int]:
    """Returns the number of times each thread of this process has been paused for another one, by thread number."""
    found = {}
    for folder in Path("/proc/self/task").iterdir():
        try:
            status = (folder / "status").read_text()
        except OSError:
            # The thread has just ended.
            continue
        found[folder.name] = int(status.rpartition("nonvoluntary_ctxt_switches:")[2])
    return found


class SharedCores:
    """A judgement, look by look, of whether other processes use our cores: then threads are paused often."""

    def __init__(self) -> None:
        self._before: dict[str, int] = {}
        self._calm = CALM

    def look(self, paused: dict[str, int]) -> bool:
        """Returns True if cores are shared.

        Args:
            paused: what :func:`pauses` returns ``SECONDS`` after the last look.
        """
        often = any(count - self._before.get(thread, count) >= PAUSED * SECONDS for thread, count in paused.items())
        self._before = paused
        self._calm = 0 if often else self._calm + 1
        return self._calm < CALM


class IdlePools:
    """OpenMP threads without work, as many as it takes to have more threads than cores.

    Args:
        threads: how many threads PyTorch uses.
    """

    def __init__(self, threads: int):
        # Each thread that calls PyTorch has a pool of its own, of this many more threads.
        self._more = threads - 1
        self._count = max(1, -(-(len(os.sched_getaffinity(0)) - self._more) // self._more))
        self._pools: list[threading.Thread] = []
        self._end = threading.Event()

    def start(self) -> None:
        """Starts the threads and returns when all are there."""
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
        """Ends the threads and returns when all are gone; a pool ends with the thread that it belongs to."""
        self._end.set()
        for pool in self._pools:
            pool.join()
        self._pools = []

    def _pool(self, ready: threading.Semaphore, end: threading.Event) -> None:
        torch.empty(2 * (self._more + 1) * GRAIN, dtype=torch.int8).neg_()
        ready.release()
        end.wait()
