"""Runs of ``fairseq-train``, one after the other, in one process or in several that train together.

This file is also the program of these processes: ``python processes.py RANK RUNS.json``.
"""

import json
import socket
import sys
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from subprocess import STDOUT

import commands

MARK = "=== run "


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def options(data, *given, arch="expire_span_lm", criterion=("expire_span_loss", "--expire-loss-weight", "1e-3")):
    """Options of ``fairseq-train`` for a model that is smaller than that of commands.py. Options given last win."""
    spans = ["--max-span", "64", "--span-ramp", "8", "--span-init", "16"]
    fixed = ["--max-span", "24"]
    compressed = ["--max-span", "12", "--compressed-size", "4"]
    spans = {"transformer_xl_lm": fixed, "compressive_transformer_lm": compressed}.get(arch, spans)
    given = [
        data, "--user-dir", commands.USER_DIR, "--task", "memory_caching_lm", "--arch", arch, "--decoder-layers", "2",
        "--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "32", "--decoder-attention-heads", "2",
        "--dropout", "0", *spans, "--criterion", *criterion, "--tokens-per-sample", "8", "--batch-size", "4",
        "--optimizer", "nag", "--lr", "0.1", "--clip-norm", "1", "--max-update", "6", "--cpu", "--log-format", "json",
        "--log-interval", "1", "--num-workers", "0", "--no-epoch-checkpoints", "--disable-validation", *given,
    ]  # fmt: skip
    return [str(part) for part in given]


def train(folder, runs, *, count):
    """Trains. Fails the test unless all processes succeed.

    Args:
        folder: where each run gets a folder for its checkpoints, by its name.
        runs: options by name.
        count: of processes.
    Returns:
        output of the first process by name of the run.
    """
    folder.mkdir(exist_ok=True)
    joined = []
    if count > 1:
        joined = ["--distributed-backend", "gloo", "--distributed-world-size", str(count), "--distributed-no-spawn",
                  "--distributed-init-method", f"tcp://127.0.0.1:{free_port()}"]  # fmt: skip
    runs = {name: ["--save-dir", str(folder / name), *joined, *given] for name, given in runs.items()}
    (folder / "runs.json").write_text(json.dumps(runs))
    logs = [folder / f"{rank}.log" for rank in range(count)]
    with ExitStack() as stack:
        started = [
            commands.start(
                sys.executable,
                __file__,
                rank,
                folder / "runs.json",
                stdout=stack.enter_context(log.open("w")),
                stderr=STDOUT,
            )
            for rank, log in enumerate(logs)
        ]
        for process in started:
            stack.callback(process.kill)
        codes = [process.wait(timeout=300) for process in started]
    outputs = [log.read_text() for log in logs]
    assert codes == [0] * count, "".join(output[-4000:] for output in outputs)
    parts = outputs[0].split(MARK)[1:]
    return {name: part for name, _, part in (part.partition("\n") for part in parts)}


def _ddp_on_a_cpu():
    """Makes PyTorch's DDP work without a GPU, though fairseq gives it the number of one."""
    from fairseq.models import distributed_fairseq_model as wrapping

    ddp = wrapping.DistributedDataParallel
    wrapping.DistributedDataParallel = lambda device_ids, output_device, **rest: ddp(**rest)


@contextmanager
def _out_of_memory(where):
    """Makes the third forward or backward pass end with the error of a GPU that is out of memory."""
    from fairseq.optim import FairseqOptimizer

    from fairseq_expire.modules import LanguageModel

    owner, name = {"forward": (LanguageModel, "read"), "backward": (FairseqOptimizer, "backward")}[where]
    done, calls = getattr(owner, name), iter(range(1000))

    def call(*arguments):
        result = done(*arguments)
        if next(calls) == 2:
            raise RuntimeError("CUDA out of memory. (a test)")
        return result

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, done)


def main(rank, path):
    from fairseq_cli import train as command

    _ddp_on_a_cpu()
    for name, given in json.loads(Path(path).read_text()).items():
        print(MARK + name, flush=True)
        fault = _out_of_memory(name.split("-")[-1]) if name.startswith("oom") and rank == "1" else nullcontext()
        sys.argv = [
            "fairseq-train",
            *given,
            *(["--distributed-rank", rank] if "--distributed-no-spawn" in given else []),
        ]
        with fault:
            command.cli_main()


if __name__ == "__main__":
    main(*sys.argv[1:])
