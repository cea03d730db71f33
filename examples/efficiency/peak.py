"""The most memory that a process holds while a block is read, above what it holds with nothing but the model."""

import ctypes
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch
from subjects import SUBJECTS, Shape, blocks


def _kilobytes(name: str) -> int:
    """A line of /proc/self/status: VmRSS, what is held now, or VmHWM, the most since it was set back."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise RuntimeError(
        f"/proc/self/status has no {name}: peak memory is measured on Linux only; leave it out with --no-memory"
    )


def resident() -> int:
    """Bytes that this process holds."""
    return _kilobytes("VmRSS") * 1024


def _forget_the_past() -> None:
    """Gives freed memory back and starts the measurement of the peak anew."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak_of(step: Callable[[], object], *, before: int, restart: Callable[[], object] = lambda: None) -> int:
    """Bytes that this process holds at most while a step is made, above what it holds when only the model is there.

    Args:
        before: steps after which memories are in their steady state.
        restart: empties the memories.
    """
    # Then kernels are loaded, and the gradients, which are the model's, are there.
    step()
    restart()
    _forget_the_past()
    model = _kilobytes("VmRSS")
    for _ in range(before):
        step()
    _forget_the_past()
    step()
    return (_kilobytes("VmHWM") - model) * 1024


def _measure(name: str, shape: Shape, mode: str, checkout: str | None, threads: int) -> int:
    torch.set_num_threads(threads)
    subject = SUBJECTS[name](shape, checkout)
    first, *stream = blocks(shape, shape.blocks_to_fill + 1)
    following = iter([first, first, *stream])
    return peak_of(
        lambda: getattr(subject, mode)(next(following)), before=shape.blocks_to_fill, restart=subject.restart
    )


def peak_memory(name: str, shape: Shape, mode: str, checkout: str | None) -> int:
    """Bytes above the model (weights and their gradients), in a process of its own, in the steady state of the memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (name, shape, mode, checkout, torch.get_num_threads()))
