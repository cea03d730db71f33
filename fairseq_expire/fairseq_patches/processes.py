"""A check that the processes of one training run know of each other."""

import os

import torch

# Programs that start several processes; the variables that each process then has, the last of which counts the
# processes; and the advice for a run on GPUs.
_STARTERS = (
    (
        "torchrun",
        ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"),
        "with GPUs add --distributed-world-size {count}",
    ),
    (
        # Only under srun itself: in a batch script or a shell of an allocation the count is 1 or missing.
        "srun",
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
        "with GPUs add --distributed-world-size (the number of GPUs in all) and --distributed-port",
    ),
)


def check_processes_are_joined() -> None:
    """Raises ValueError if this is one of several processes each of which would train a model of its own.

    fairseq looks for other processes only if ``--distributed-world-size`` is not 1. Its default is the number of GPUs
    that the process sees, and so it is 1 if there is one GPU or none.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return
    for starter, variables, with_gpus in _STARTERS:
        if not all(name in os.environ for name in variables) or int(os.environ[variables[-1]]) == 1:
            continue
        rank, count = variables[-2], os.environ[variables[-1]]
        raise ValueError(
            f"{starter} started {count} processes, but fairseq has not joined them: each would train a model of its "
            f"own; {with_gpus.format(count=count)}, on CPUs --cpu --ddp-backend legacy_ddp --distributed-backend gloo "
            f"--distributed-world-size {count} --distributed-rank ${rank} --distributed-no-spawn "
            "--distributed-init-method tcp://HOST:PORT (docs/distributed.md, 'Several processes'). "
            f"If each is meant to train its own, unset {variables[-1]}"
        )
