import os
import signal
import subprocess
import sys
import time

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
def test_no_more_is_taken_than_is_worked_on(in_processes):
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

    with pytest.raises(ValueError, match="number 3"):
        with ordered_map(fail, range(10), workers=workers, in_processes=in_processes) as results:
            list(results)


def test_a_worker_that_is_killed_is_noticed():
    def die(number):
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RuntimeError, match="a worker process was killed .*fewer --workers"):
        with ordered_map(die, range(10), workers=2, in_processes=True) as results:
            list(results)


def test_workers_end_with_the_process_that_started_them(tmp_path):
    script = """
import os, sys, time
from fairseq_expire.data.workers import ordered_map
def work(number):
    os.write(1, f"{os.getpid()}\\n".encode())
    time.sleep(60)
with ordered_map(work, range(2), workers=2, in_processes=True) as results:
    list(results)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    process.wait()
    # The pipe is open as long as one of them lives.
    assert process.stdout.read() == "" and len(set(workers)) == 2
