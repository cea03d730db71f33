"""Parallel work: results come in order, and nothing is left running."""

import os
import signal
import time

import killable
import pytest

from fairseq_expire.corpora.workers import ordered_map


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("in_processes", [False, True])
def test_results_come_in_order(workers, in_processes):
    offset = 3

    def slow_at_first(number):
        time.sleep(0.02 if number % 5 == 0 else 0)
        return number + offset

    with ordered_map(slow_at_first, range(40), workers=workers, in_processes=in_processes) as results:
        assert list(results) == [number + offset for number in range(40)]


@pytest.mark.parametrize("in_processes", [False, True])
def test_few_things_are_taken_ahead(in_processes):
    taken = []

    def things():
        for number in range(1000):
            taken.append(number)
            yield number

    with ordered_map(abs, things(), workers=2, in_processes=in_processes) as results:
        assert [next(results) for _ in range(10)] == list(range(10))
        assert len(taken) <= 10 + 2 * 2
    assert len(taken) <= 10 + 2 * 2


@pytest.mark.parametrize("in_processes", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_error_in_order_is_raised(workers, in_processes):
    def fail(number):
        time.sleep(0.05 if number == 3 else 0)
        if number in (3, 4):
            raise ValueError(f"number {number}")
        return number

    with (
        pytest.raises(ValueError, match="number 3"),
        ordered_map(fail, range(10), workers=workers, in_processes=in_processes) as results,
    ):
        list(results)


def test_a_worker_that_is_killed_is_noticed():
    def die(number):
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    with (
        pytest.raises(RuntimeError, match=r"a worker process was killed .*fewer --workers"),
        ordered_map(die, range(10), workers=2, in_processes=True) as results,
    ):
        list(results)


def test_workers_end_with_the_process_that_started_them():
    reading, writing = os.pipe()

    def work(number):
        os.write(writing, f"{os.getpid()}\n".encode())
        time.sleep(60)

    def start():
        with ordered_map(work, range(2), workers=2, in_processes=True) as results:
            list(results)

    child = killable.start(start)
    os.close(writing)
    with open(reading) as pipe:
        workers = {int(pipe.readline()) for _ in range(2)}
        os.kill(child, signal.SIGKILL)
        assert killable.was_killed(child) and len(workers) == 2
        # The pipe stays open as long as one of them lives.
        assert pipe.read() == ""
