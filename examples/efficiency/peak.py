"""Peak memory of a process while a block is read, above the memory with only the model."""

import ctypes
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch
from subjects import SUBJECTS, Shape, blocks


def _kilobytes(name: str) -> int:
    """Returns a value of /proc/self/status: VmRSS, the resident memory, or VmHWM, its peak since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise RuntimeError(
        f"/proc/self/status has no {name}: peak memory is measured on Linux only; leave it out with --no-memory"
    )


def resident() -> int:
    """Returns the resident memory of this process in bytes."""
    return _kilobytes("VmRSS") * 1024


def _reset_peak() -> None:
    """Returns freed memory to the system and resets the peak."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak_of(step: Callable[[], object], *, before: int, restart: Callable[[], object] = lambda: None) -> int:
    """Measures the peak memory of this process during a step, above the memory with only the model, in bytes.

    Args:
        step: makes a step.
        before: number of steps after which memories are in their steady state.
        restart: empties the memories.
    """
    # Loads kernels, and makes the gradients, which count as part of the model.
    step()
    restart()
    _reset_peak()
    model = _kilobytes("VmRSS")
    for _ in range(before):
        step()
    _reset_peak()
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
    """Measures the peak memory above weights and gradients in a new process, in the steady state of the memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (name, shape, mode, checkout, torch.get_num_threads()))
