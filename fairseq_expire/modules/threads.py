"""Threads of PyTorch on a CPU that sleep while they wait, so that other processes do not slow them down."""

import os
import sys
import threading

import torch

# Elements that one thread works on, at least; so many for each thread make PyTorch use them all.
GRAIN = 1 << 15
# What users set themselves to choose how threads wait; that is left alone.
CHOSEN_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")

_lock = threading.Lock()
_done = False


def let_waiting_threads_sleep() -> bool:
    """Makes the OpenMP threads of this process sleep soon after they have nothing to do; by default they spin for milliseconds.

    A thread that spins uses up its time slice. If another process wants the same core, the thread is then paused just when there
    is work for it, and all others wait. Steps of many short parallel regions, as those of a small model, become ten times
    slower through one busy neighbour.

    ``OMP_WAIT_POLICY=passive`` does the same, but only if it is set before torch is imported. This function works later, on
    Linux with GNU's OpenMP, as in PyTorch's own builds: that library spins only briefly once it has more threads than there
    are cores. So this function starts more, which never get any work.

    Returns:
        True if it did so. False with one thread, on another system, if the environment says how threads wait, and on a second call.
    """
    global _done
    threads = torch.get_num_threads()
    if threads < 2 or not sys.platform.startswith("linux") or any(name in os.environ for name in CHOSEN_BY_USER):
        return False
    with _lock:
        if _done:
            return False
        _done = True
    # Each thread that PyTorch is called from has a pool of its own, of `threads - 1` more.
    cores = len(os.sched_getaffinity(0))
    pools = max(0, -(-(cores + 1 - threads) // (threads - 1)))
    ready = threading.Semaphore(0)
    for _ in range(pools):
        threading.Thread(target=_idle_pool, args=(threads, ready), name="idle OpenMP pool", daemon=True).start()
    for _ in range(pools):
        ready.acquire()
    return True


def _idle_pool(threads: int, ready: threading.Semaphore) -> None:
    torch.empty(2 * threads * GRAIN, dtype=torch.int8).neg_()
    ready.release()
    # A pool ends with the thread that it belongs to.
    threading.Event().wait()
