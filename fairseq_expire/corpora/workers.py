"""Working on many things at once, and getting the results in order."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from typing import Any, TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")

# Things handed out for each worker, so that none waits and few results do.
AHEAD = 2

# No more processes than this unless asked for, as each comes to hold a table of all words.
PROCESSES = 8

# What a worker process was started for.
_function: Callable[[Any], Any] | None = None


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def ordered_map(
    function: Callable[[Thing], Result], things: Iterable[Thing], *, workers: int, in_processes: bool
) -> Iterator[Iterator[Result]]:
    """Inside the `with`, the results of `function` on each thing, in order.

    Args:
        function: called in `workers` threads, or in processes that are forked for it, so that it need not be picklable;
            with one worker, in this thread.
        things: picklable, if there are processes.

    Raises:
        RuntimeError: a process was killed, as Linux does when memory runs out.
    """
    if workers == 1:
        yield map(function, things)
        return
    executor = _processes(function, workers) if in_processes else ThreadPoolExecutor(workers)
    try:
        with closing(_in_order(executor, _call if in_processes else function, things, workers * AHEAD)) as results:
            yield results
    except BrokenProcessPool:
        raise RuntimeError("a worker process was killed (out of memory?); run it again with fewer --workers") from None
    finally:
        executor.shutdown(cancel_futures=True)


def _in_order(executor: Executor, call: Callable, things: Iterable, ahead: int) -> Iterator:
    waiting = deque()
    for thing in things:
        waiting.append(executor.submit(call, thing))
        if len(waiting) == ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _processes(function: Callable, workers: int) -> Executor:
    # Forking takes what is loaded along: starting afresh would load fairseq in every process, which takes seconds.
    context = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(function,))


def _start(function: Callable) -> None:
    global _function
    _function = function
    # Ctrl-C goes to all processes, and is the first one's to act on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(thing: Any) -> Any:
    return _function(thing)
