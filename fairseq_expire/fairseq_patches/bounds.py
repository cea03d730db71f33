"""Keeping parameters in their range under fairseq's optimizers, of which some hold copies of them in float32."""

from collections.abc import Iterator

import torch
from fairseq.optim import FairseqOptimizer
from fairseq.optim.fp16_optimizer import FP16Optimizer
from torch import Tensor, nn

from fairseq_expire.modules import MemoryPolicy, keep_bounds


def _copies(optimizer: FairseqOptimizer) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """The parameters of ``--fp16`` or ``--bf16``, each with the float32 copy (a view of it) that is what is really optimised."""
    if not isinstance(optimizer, FP16Optimizer):
        return
    copies = optimizer.fp32_params
    if not isinstance(copies, dict):
        yield from zip(optimizer.fp16_params, copies)
        return
    # One flat copy a device, of its parameters in their order.
    ends = dict.fromkeys(copies, 0)
    for parameter in optimizer.fp16_params:
        device = parameter.device.index
        start = ends[device]
        ends[device] = start + parameter.numel()
        yield parameter, copies[device].data[start : ends[device]]


@torch.no_grad()
def keep_bounds_of(optimizer: FairseqOptimizer, model: nn.Module) -> None:
    """:func:`keep_bounds`, for the model and for what the optimizer has of it."""
    keep_bounds(model)
    bounds = {
        id(parameter): (least, most)
        for policy in model.modules()
        if isinstance(policy, MemoryPolicy)
        for parameter, least, most in policy.bounds()
    }
    if bounds:
        for parameter, copy in _copies(optimizer):
            if id(parameter) in bounds:
                copy.clamp_(*bounds[id(parameter)])
