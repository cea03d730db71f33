"""Parallel work whose results come in order."""

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

# Things to hand out ahead for each worker, so that no worker waits and few results are kept.
AHEAD = 2

# At most this many processes unless the user asks for more, since each holds a table of all words.
PROCESSES = 8

# The function that a worker process was started for.
_function: Callable[[Any], Any] | None = None


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def ordered_map(
    function: Callable[[Thing], Result], things: Iterable[Thing], *, workers: int, in_processes: bool
) -> Iterator[Iterator[Result]]:
    """Calls a function on many things, in parallel.

    Inside the ``with``, an iterator over the results, in the order of the things.

    Args:
        function: need not be picklable, since processes are forked for it.
        things: must be picklable if there are processes.
        workers: number of threads or processes. With one, the function is called in this thread.
        in_processes: use processes instead of threads.

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
    # A forked process has fairseq loaded already, which takes seconds in a new one.
    context = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(function,))


def _start(function: Callable) -> None:
    global _function
    _function = function
    # Ctrl-C goes to all processes. The main one handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(thing: Any) -> Any:
    return _function(thing)
