"""Bounds of parameters under fairseq's optimizers, which may optimise float32 copies in place of the parameters."""

from collections.abc import Iterator

import torch
from fairseq.optim import FairseqOptimizer
from fairseq.optim.fp16_optimizer import FP16Optimizer
from torch import Tensor, nn

from fairseq_expire.modules import MemoryPolicy, keep_bounds


@torch.no_grad()
def keep_bounds_with_copies(optimizer: FairseqOptimizer, model: nn.Module) -> None:
    """Clamps the parameters with bounds of a model, and the optimizer's copies of them."""
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


def _copies(optimizer: FairseqOptimizer) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Yields each parameter of ``--fp16`` or ``--bf16`` with (a view of) the float32 copy that is optimised in its
    place.
    """
    if not isinstance(optimizer, FP16Optimizer):
        return
    copies = optimizer.fp32_params
    if not isinstance(copies, dict):
        yield from zip(optimizer.fp16_params, copies)
        return
    # One flat copy per device, of its parameters in order.
    ends = dict.fromkeys(copies, 0)
    for parameter in optimizer.fp16_params:
        device = parameter.device.index
        start = ends[device]
        ends[device] = start + parameter.numel()
        yield parameter, copies[device].data[start : ends[device]]
