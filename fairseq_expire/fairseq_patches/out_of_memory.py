"""What one of several processes does when it runs out of memory."""

import logging

import torch
from fairseq.distributed import utils as distributed_utils
from fairseq.tasks import FairseqTask

logger = logging.getLogger(__name__)


class JointTask(FairseqTask):
    """A task in whose training a batch that is too large for one process does not stop the others.

    A process that trains alone leaves such a batch out: fairseq's trainer sees to that. Of several it lets the others go on,
    but this one then sends neither gradients through PyTorch's DDP nor a log, and they wait for both forever. So here it reads
    one token from which nothing is learnt, as a process does that has run out of text. Where memory runs out in backward, of
    which PyTorch's DDP has sent a part by then, that helps with ``--ddp-backend legacy_ddp`` alone.
    """

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        try:
            return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)
        except RuntimeError as error:
            # As fairseq tells it.
            if "out of memory" not in str(error) or distributed_utils.get_data_parallel_world_size() == 1:
                raise
            logger.warning("OOM: this process takes no part in an update: %s", error)
        # Out of the handler, for the error holds on to the batch. As in fairseq, what is lost is also what other batches of the
        # update have added.
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
