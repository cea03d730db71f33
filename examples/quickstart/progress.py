"""Commands run with their output in a log, and one line on the screen that says how far they are."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import deque

# What the criterion calls the mean number of memories that a query can see; fairseq puts the subset in front of it outside training.
MEMORY_SIZE = "memory_size"
# Over how long a rate is measured: a machine may have become busy.
RATE_SECONDS = 10


class Failed(Exception):
    """A step that went wrong, with the line to show for it."""


class Status:
    """What a step is doing and for how long: a line rewritten every second on a terminal, a new line now and then elsewhere."""

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
    """Turns the json log of fairseq-train into one line (updates, bits per byte, memory size, time left), and measures it.

    `seconds` is the time for the whole training, `max_update` how many updates it is to have.
    """

    def __init__(self, max_update, seconds, updates=0, trained=0.0):
        self.max_update = max_update
        self.seconds = seconds
        self.updates, self.trained = updates, trained
        # Updates and seconds between two lines.
        self.recent = deque()
        self.lines = 0
        self.last = "starting"

    def line(self, log_line):
        """The progress that a line of the log reports, or None where it reports none."""
        tag, stats = read_json(log_line)
        if tag != "train_inner":
            return None
        # Not `wall`, which is 0 in a training that went on from a checkpoint.
        updates = int(float(stats["num_updates"])) - self.updates
        seconds = updates / max(float(stats["ups"]), 0.001)
        self.updates, self.trained = self.updates + updates, self.trained + seconds
        self.lines += 1
        if self.lines > 1:
            # What comes before is not measured: the first updates take longer.
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
        """Updates per second of late, without what came before the first line; None if there was only one."""
        seconds = sum(seconds for _, seconds in self.recent)
        return sum(updates for updates, _ in self.recent) / seconds if seconds else None


def read_json(log_line):
    """Tag and statistics of a line that fairseq wrote for --log-format json; (None, {}) for every other line."""
    parts = log_line.split(" | ", 3)
    if len(parts) == 4 and parts[3].startswith("{"):
        try:
            return parts[2], json.loads(parts[3])
        # fairseq prints its settings as a Python dictionary.
        except ValueError:
            pass
    return None, {}


def clock(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def run(command, log, on_line=lambda line: None, mode="w", threads=None):
    """Run a command with all it says in the file at the Path `log`, each line also to `on_line`. Raises Failed where it ends with an error.

    `threads` is how many PyTorch uses; all cores if None."""
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
        # After Ctrl-C, or an error in `on_line`, nothing goes on in the background.
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode:
        raise Failed(f"{log.stem} ended with exit status {process.returncode}:\n{tail(log)}\nfull log: {log}")


def tail(log, lines=15):
    text = log.read_text(encoding="utf-8", errors="replace")
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:])
