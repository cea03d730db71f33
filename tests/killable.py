"""Runs functions in forks of the test's process, which may be killed. A new process would spend seconds on imports."""

import os
import signal


def start(function):
    """Starts a function in a fork, whose output is discarded. Returns the process id."""
    child = os.fork()
    if child:
        return child
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    status = 1
    try:
        function()
        status = 0
    finally:
        # Without the cleanup of the test's process.
        os._exit(status)


def was_killed(child):
    """Waits for the end of a fork. Fails the test if its function raised an error."""
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the function in the fork failed"
    return os.WIFSIGNALED(status)


def run(function):
    """Runs a function in a fork. Returns True if it was killed."""
    return was_killed(start(function))


def kill_this_process():
    os.kill(os.getpid(), signal.SIGKILL)
