"""``fairseq-train`` processes that are killed with SIGKILL at random moments and started again until they are done."""

import contextlib
import os
import random
import signal
import socket
import time

import commands
import pytest
import torch

# An epoch has 24 updates. A checkpoint after each update makes many kills hit the writing of a checkpoint.
OPTIONS = [
    "--task", "memory_caching_lm", "--arch", "expire_span_lm", *commands.MODEL, "--max-span", "256",
    "--span-ramp", "16", "--span-init", "48", "--span-shortening", "--dropout", "0.2", "--attention-dropout", "0.1",
    "--tokens-per-sample", "16", "--batch-size", "80", "--update-freq", "2", "--optimizer", "adam", "--lr", "0.003",
    "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "10", "--cpu", "--log-format", "json",
    "--log-interval", "1", "--save-interval-updates", "1", "--keep-interval-updates", "2", "--disable-validation",
]  # fmt: skip
# Statistics that depend on the clock.
TIMES = {"wps", "ups", "wall", "train_wall"}
# Seconds; longer than a run can take.
LIMIT = 300


class Run:
    """A training run that is started several times. Each of its processes has one log for all starts."""

    def __init__(self, data, folder, *options, processes=1):
        self.save_dir, self.processes = folder / "checkpoints", processes
        self.starts = 0
        self.logs = [folder / f"log.{process}" for process in range(processes)]
        self.command = [commands.tool("fairseq-train"), data, "--user-dir", commands.USER_DIR, *OPTIONS, *options]
        folder.mkdir()

    def start(self):
        """Starts the processes, with 0, 4, 1, 0... data-loading workers from start to start. Returns them."""
        workers = [0, 4, 1][self.starts % 3]
        self.starts += 1
        distributed = []
        if self.processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
            distributed = [
                "--distributed-backend", "gloo", "--distributed-world-size", self.processes, "--distributed-no-spawn",
                "--distributed-init-method", address,
            ]  # fmt: skip
        started = []
        for process, log in enumerate(self.logs):
            rank = ["--distributed-rank", process] if distributed else []
            command = [*self.command, "--save-dir", self.save_dir, "--num-workers", workers, *distributed, *rank]
            with open(log, "ab") as output:
                started.append(commands.start(*command, stdout=output, stderr=output, start_new_session=True))
        return started

    def finish(self):
        for process in self.start():
            assert process.wait(LIMIT) == 0, self.logs[0].read_text()[-4000:]

    def kill(self, after):
        """Starts the run and kills it ``after`` seconds of training. Returns False if it was done before."""
        size = self.logs[0].stat().st_size if self.logs[0].exists() else 0
        processes = self.start()
        end = time.monotonic() + LIMIT
        while b"Start iterating" not in self.logs[0].read_bytes()[size:] and processes[0].poll() is None:
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(after)
        killed = processes[0].poll() is None
        for process in processes:
            # The group holds its data-loading workers, which may outlive it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return killed

    def lines(self):
        """Logged statistics of each update, from all starts."""
        found = {}
        for line in commands.logged(self.logs[0].read_text(), "train_inner"):
            line = {name: value for name, value in line.items() if name not in TIMES}
            assert found.setdefault(line["num_updates"], line) == line
        return found

    def state(self):
        """Weights and optimizer state of the last checkpoint."""
        state = torch.load(self.save_dir / "checkpoint_last.pt")
        assert state["extra_state"]["train_iterator"]["iterations_in_epoch"] > 0
        return {**state["model"], **{f"{n}.{name}": value for n, name, value in moments(state)}}


def moments(state):
    for number, values in state["last_optimizer_state"]["state"].items():
        for name, value in values.items():
            yield number, name, torch.as_tensor(value)


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random_moments(data_bin, tmp_path, long, processes):
    kills, updates = (20, 80) if long else (3 - processes, 30)
    options = ["--max-update", updates]
    if processes == 1:
        options += ["--criterion", "expire_span_loss", "--expire-loss-weight", "1e-4"]
    else:
        options += ["--batch-size", "40", "--ddp-backend", "legacy_ddp", "--criterion", "cross_entropy"]
    whole = Run(data_bin, tmp_path / "whole", *options, processes=processes)
    whole.finish()
    expected, weights = whole.lines(), whole.state()
    assert list(expected) == list(range(1, updates + 1))

    seed = time.time_ns()
    print(f"random seed {seed}")
    moment = random.Random(seed)
    done, number = 0, 0
    while done < kills:
        # A run that is done before it was killed often enough is followed by another.
        number += 1
        run = Run(data_bin, tmp_path / f"killed{number}", *options, processes=processes)
        while done < kills and run.kill(moment.uniform(0, 1.5)):
            done += 1
        run.finish()
        assert run.lines() == expected
        state = run.state()
        assert state.keys() == weights.keys()
        assert all(torch.equal(state[name], weights[name]) for name in weights)
        names = {path.name for path in run.save_dir.iterdir()}
        assert {name for name in names if name.endswith(".unfinished")} == set()
        # The memory files of the last checkpoint and of the two that are kept; one of these may be the last.
        assert len({name.split(".")[0] for name in names if name.startswith("memory_")}) <= 3
