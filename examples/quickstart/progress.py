"""Commands with their output in a log, and one line of progress on the screen."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import deque

# Log name of the mean number of memories that a query can see; fairseq adds the subset in front of it outside of
# training.
MEMORY_SIZE = "memory_size"
# Seconds over which a rate is measured; a short time shows that a machine has become busy.
RATE_SECONDS = 10


class Failed(Exception):
    """A failed step, with a message for the user."""


class Status:
    """Status line of a step with its duration, rewritten every second on a terminal, repeated every ten elsewhere."""

    def __init__(self, title, stream=None):
        self.title = title
        self.stream = stream or sys.stdout
        self.terminal = self.stream.isatty()
        self.text = ""
        self.start = time.monotonic()
        self.over = threading.Event()
        self.ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self):
        self._show()
        self.ticker.start()
        return self

    def __exit__(self, *exception):
        self.over.set()
        self.ticker.join()
        self._show()
        if self.terminal:
            print(file=self.stream, flush=True)

    def say(self, text):
        self.text = text

    def _tick(self):
        while not self.over.wait(1 if self.terminal else 10):
            self._show()

    def _show(self):
        line = f"{self.title} [{clock(time.monotonic() - self.start)}] {self.text}".rstrip()
        if self.terminal:
            line = line[: shutil.get_terminal_size().columns - 1]
            print(f"\r{line}\x1b[K", end="", file=self.stream, flush=True)
        else:
            print(line, file=self.stream, flush=True)


class TrainingProgress:
    """Progress of a training from the JSON log of fairseq-train, as one line and as a rate.

    Args:
        max_update: number of updates of the whole training.
        seconds: time for the whole training.
        updates, trained: updates and seconds before this part of it.
    """

    def __init__(self, max_update, seconds, updates=0, trained=0.0):
        self.max_update = max_update
        self.seconds = seconds
        self.updates, self.trained = updates, trained
        # (updates, seconds) between successive lines.
        self.recent = deque()
        self.lines = 0
        self.last = "starting"

    def line(self, log_line):
        """Returns the progress that a line of the log reports; None if it reports none."""
        tag, stats = read_json(log_line)
        if tag != "train_inner":
            return None
        # `wall` restarts at 0 in a training that continues from a checkpoint.
        updates = int(float(stats["num_updates"])) - self.updates
        seconds = updates / max(float(stats["ups"]), 0.001)
        self.updates, self.trained = self.updates + updates, self.trained + seconds
        self.lines += 1
        if self.lines > 1:
            # The first updates are slower and do not count.
            self.recent.append((updates, seconds))
        while sum(seconds for _, seconds in list(self.recent)[1:]) >= RATE_SECONDS:
            self.recent.popleft()
        self.last = (
            f"update {self.updates} of {self.max_update}, {float(stats['nll_loss']):.3f} bits per byte, "
            f"remembers {float(stats[MEMORY_SIZE]):.0f} steps, about {clock(max(self.seconds - self.trained, 0))} left"
        )
        return self.last

    @property
    def rate(self):
        """Recent updates per second, without those before the first line; None if there was only one."""
        seconds = sum(seconds for _, seconds in self.recent)
        return sum(updates for updates, _ in self.recent) / seconds if seconds else None


def read_json(log_line):
    """Returns tag and statistics of a line of --log-format json; (None, {}) for every other line."""
    parts = log_line.split(" | ", 3)
    if len(parts) == 4 and parts[3].startswith("{"):
        try:
            return parts[2], json.loads(parts[3])
        # fairseq prints its settings as a Python dictionary.
        except ValueError:
            pass
    return None, {}


def clock(seconds):
    """Formats a duration as minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def run(command, log, on_line=lambda line: None, mode="w", threads=None):
    """Runs a command with its output in a file.

    Args:
        command: program and arguments.
        log: path of the file.
        on_line: called with each line of the output.
        mode: "w" for a new file, "a" to add to it.
        threads: number of threads of PyTorch; None for all cores.
    Raises:
        Failed: if the command fails.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with (
        log.open(mode, encoding="utf-8") as file,
        subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=environment,
        ) as process,
    ):
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                on_line(line.rstrip("\n"))
        # After Ctrl-C, or an error in `on_line`, the command must not continue in the background.
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode:
        raise Failed(f"{log.stem} ended with exit status {process.returncode}:\n{tail(log)}\nfull log: {log}")


def tail(log, lines=15):
    """Returns the last lines of a log, indented."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:])
