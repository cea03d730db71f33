"""The base class of the tasks that the patches are for; it handles one of several processes running out of memory."""

import logging

import torch
from fairseq.data import Dictionary
from fairseq.distributed import utils as distributed_utils
from fairseq.tasks import FairseqTask

logger = logging.getLogger(__name__)


class PatchedTask(FairseqTask):
    """A task that fairseq's patched functions serve. For every other task they do what fairseq does.

    Subclasses have a ``dictionary`` and the option ``save_memory``.

    A process that trains alone leaves out a batch that is too large for its memory: fairseq's trainer does this. One of
    several processes also has to send its gradients and its log, or the others wait forever. PyTorch's DDP sends
    gradients in the backward pass only. So the process reads one token instead, with an ignored gradient, as fairseq
    does in a process that has no text left. If the memory runs out in the backward pass, DDP has sent some gradients
    already, and only ``--ddp-backend legacy_ddp`` can go on.
    """

    # The name of the memory files of the checkpoint that is being written; None if it has none. ``saving`` sets it.
    saved_memory: str | None = None
    dictionary: Dictionary

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        try:
            return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)
        except RuntimeError as error:
            # The same test as in fairseq's trainer.
            if "out of memory" not in str(error) or distributed_utils.get_data_parallel_world_size() == 1:
                raise
            logger.warning("OOM: this process takes no part in an update: %s", error)
        # Outside the handler, because the error keeps the batch alive. As in fairseq, the gradients of earlier
        # micro-batches of this update are lost, too.
        optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        one_token = {
            **sample,
            "net_input": {"src_tokens": sample["net_input"]["src_tokens"][:1, :1]},
            "target": sample["target"][:1, :1],
            "ntokens": 1,
            "nsentences": 1,
        }
        loss, sample_size, log = super().train_step(
            one_token, model, criterion, optimizer, update_num, ignore_grad=True
        )
        return loss, sample_size * 0, {name: value * 0 for name, value in log.items()}
