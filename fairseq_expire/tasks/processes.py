"""Whether the processes that train together know of each other."""

import os

import torch

# Who starts several processes, what a process then has in its environment (the last one counts them), and what to say.
_STARTERS = (
    (
        "torchrun",
        ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"),
        "with GPUs add --distributed-world-size {count}",
    ),
    (
        # Only for what srun starts: in a batch script or a shell inside an allocation the count is 1 or not there.
        "srun",
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
        "with GPUs add --distributed-world-size (the number of GPUs in all) and --distributed-port",
    ),
)


def check_processes_are_joined() -> None:
    """Raises ValueError if this is one of several processes that each would train a model of its own.

    fairseq looks for other processes only if ``--distributed-world-size`` is not 1. Its default is the number of GPUs
    that the process sees, and so 1 where that is one GPU or none.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return
    for starter, variables, with_gpus in _STARTERS:
        if not all(name in os.environ for name in variables) or int(os.environ[variables[-1]]) == 1:
            continue
        rank, count = variables[-2], os.environ[variables[-1]]
        raise ValueError(
            f"{starter} started {count} processes, but fairseq has not joined them: each would train a model of its own; "
            f"{with_gpus.format(count=count)}, on CPUs --cpu --ddp-backend legacy_ddp --distributed-backend gloo "
            f"--distributed-world-size {count} --distributed-rank ${rank} --distributed-no-spawn "
            "--distributed-init-method tcp://HOST:PORT (README, 'Several processes'). "
            f"If each is meant to train its own, unset {variables[-1]}"
        )
