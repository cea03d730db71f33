"""Cross-entropy plus the penalty of the memory policy, with statistics of the memory in the log."""

import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, Tuple

import torch
import torch.nn.functional as F
from fairseq import utils
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import meters, metrics
from omegaconf import II
from torch import Tensor

from fairseq_expire.fairseq_patches.meters import MaxMeter
from fairseq_expire.modules import LayerReport
from fairseq_expire.streaming.answers import AnswerTally
from fairseq_expire.streaming.published_units import MOST_LABELS


@dataclass
class ExpireSpanLossConfig(FairseqDataclass):
    """Options of ``--criterion expire_span_loss``."""

    expire_loss_weight: float = field(
        default=1e-6, metadata={"help": "weight of the span penalty (alpha): the price of remembering one step"}
    )
    sentence_avg: bool = II("optimization.sentence_avg")


@register_criterion("expire_span_loss", dataclass=ExpireSpanLossConfig)
class ExpireSpanLoss(FairseqCriterion):
    """Cross-entropy summed over tokens, plus alpha times the policy's penalty.

    The paper's objective for a block is mean cross-entropy + alpha * sum of e_i / (R * T), averaged over rows. fairseq
    divides the sum of losses by the number of tokens, so here both stand without their 1 / T.
    """

    def __init__(self, task, expire_loss_weight: float, sentence_avg: bool):
        super().__init__(task)
        if not 0 <= expire_loss_weight < math.inf:
            raise ValueError(f"--expire-loss-weight is a price: expected a number from 0 on, got {expire_loss_weight}")
        if not hasattr(task, "level"):
            raise ValueError(
                "--criterion expire_span_loss needs the memories of --task memory_caching_lm or "
                f"memory_caching_tagging, which {type(task).__name__} does not keep: name one of them, or use "
                "--criterion cross_entropy"
            )
        self.expire_loss_weight = expire_loss_weight
        # None in a language model.
        self.num_labels = None if task.label_dictionary is None else len(task.label_dictionary)
        self.sentence_avg = sentence_avg
        # For these symbols, bits per token are bits per character.
        self.log_bpc = task.level in ("bytes", "chars")

    def forward(self, model, sample, reduce=True) -> Tuple[Tensor, int, Dict[str, Any]]:
        """Returns the loss summed over tokens in nats, the sample size, and the values to log."""
        features, extra = model(**sample["net_input"])
        nll = self.cross_entropy(model, features, sample["target"])
        penalties = [report.penalty.sum() for report in extra["reports"] if report.penalty is not None]
        penalty = self.expire_loss_weight * sum(penalties) if penalties else nll.new_zeros(())
        labels_per_token = sample.get("labels_per_token", 1)
        # fairseq divides the sum by the sample size, and the penalty is a mean over tokens.
        loss = nll + labels_per_token * penalty
        targets = sample["ntokens"] if self.num_labels is None else int((sample["target"] != self.padding_idx).sum())
        # The expected number of targets: few labels in an update, or none, must not make its penalty large. Every label
        # of an epoch has the same weight.
        sample_size = sample["target"].size(0) if self.sentence_avg else sample["ntokens"] * labels_per_token
        logging_output = {
            "loss": loss.detach(),
            "nll_loss": nll.detach(),
            "expire_loss": penalty.detach(),
            "ntokens": sample["ntokens"],
            "targets": targets,
            "nsentences": sample["target"].size(0),
            "sample_size": sample_size,
            "log_bpc": self.log_bpc,
            "batches": 1,
            "memory_bytes": extra["memory"].nbytes,
            **self.memory_statistics(extra["reports"], sample["net_input"]["src_tokens"] != self.padding_idx),
        }
        cut = [report.cut_by_budget.sum() for report in extra["reports"] if report.cut_by_budget is not None]
        if cut:
            logging_output["cut_by_budget"] = sum(cut) / len(cut)
        if self.num_labels is not None:
            logging_output.update(self.label_errors(model, features, sample))
        if "answers" in sample and not model.training:
            logging_output.update(self.answer_errors(model, features, sample))
        # A batch that does not come from the task's iterator has no number.
        micro_batch, micro_batches = sample.get("micro_batch", 0), sample.get("micro_batches", 1)
        logging_output["span_max"] = scatter_to_rank(logging_output["span_max"], micro_batch, micro_batches)
        return loss, sample_size, logging_output

    def cross_entropy(self, model, features: Tensor, target: Tensor) -> Tensor:
        """Returns the cross-entropy in nats, summed over the tokens that are not padding.

        Args:
            model: the model, for its adaptive softmax.
            features: [B, T, V] scores, or [B, T, D] with an adaptive softmax.
            target: [B, T].
        """
        if model.decoder.adaptive_softmax is None:
            scores = features.flatten(0, 1).float()
            return F.cross_entropy(scores, target.flatten(), ignore_index=self.padding_idx, reduction="sum")
        (head, *tails), (head_target, *tail_targets) = model.decoder.adaptive_softmax(features, target.flatten())
        loss = F.cross_entropy(head.float(), head_target, ignore_index=self.padding_idx, reduction="sum")
        for scores, cluster_target in zip(tails, tail_targets):
            if cluster_target is not None:
                # Words are counted from the start of their cluster: the padding index is an ordinary word.
                loss = loss + F.cross_entropy(scores.float(), cluster_target, reduction="sum")
        return loss

    @staticmethod
    @torch.no_grad()
    def missed(model, features: Tensor, target: Tensor) -> Tensor:
        """Returns [...] bool: the targets [...] that are not the most likely symbol.

        Args:
            model: the model, for its adaptive softmax.
            features: [..., V] scores, or [..., D] with an adaptive softmax.
            target: [...].
        """
        if model.decoder.adaptive_softmax is not None:
            features = model.decoder.adaptive_softmax.get_log_prob(features, None)
        return features.argmax(dim=-1) != target

    def label_errors(self, model, features: Tensor, sample) -> Dict[str, Tensor]:
        """Returns how many labels were missed; in ``eval`` mode and for at most ``MOST_LABELS`` labels, also how often
        each label was to be predicted, and how often it was missed, [number of labels] each.
        """
        target = sample["target"]
        counts = target != self.padding_idx
        missed = self.missed(model, features, target) & counts
        log = {"missed": missed.sum()}
        if not model.training and self.num_labels <= MOST_LABELS:
            log["label_counts"] = target[counts].bincount(minlength=self.num_labels)
            log["label_missed"] = target[missed].bincount(minlength=self.num_labels)
        return log

    def answer_errors(self, model, features: Tensor, sample) -> Dict[str, int]:
        """Returns how many answers ended in the batch, and in how many of them a target was missed."""
        flags = sample["answers"]
        inside = flags > 0
        missed = torch.zeros_like(inside)
        missed[inside] = self.missed(model, features[inside], sample["target"][inside])
        # A batch that does not come from the task's iterator belongs to no pass.
        tally = sample.get("tally", AnswerTally())
        found = tally.count(missed, flags, micro_batch=sample["micro_batch"], offset=sample["offset"])
        return {"answers": found.answers, "wrong_answers": found.wrong}

    @staticmethod
    @torch.no_grad()
    def memory_statistics(reports: Tuple[LayerReport, ...], tokens: Tensor) -> Dict[str, Tensor]:
        """Returns sums over the tokens of a batch, one value per layer, and the largest span.

        Args:
            reports: of the layers.
            tokens: [B, T] bool, False for padding.
        """
        sizes = torch.stack([(report.memory_size * tokens).sum() for report in reports]).double()  # [layers]
        # [B, T, H]; H is 1 unless each head has spans of its own.
        spans = [report.span.masked_fill(~tokens.unsqueeze(-1), 0) for report in reports]
        largest = torch.stack([span.max() for span in spans]).max()
        spans = torch.stack([span.mean(dim=-1).sum(dtype=torch.float64) for span in spans])
        return {"memory_size": sizes, "span": spans, "span_max": largest}

    @staticmethod
    def reduce_metrics(logging_outputs: List[Dict[str, Any]]) -> None:
        """Logs bits per target, errors in percent, spans in steps, memory sizes in states and in megabytes, over all
        processes.
        """

        def total(key):
            return sum(log[key] for log in logging_outputs)

        ntokens, sample_size = utils.item(total("ntokens")), utils.item(total("sample_size"))
        targets = utils.item(total("targets"))
        if ntokens == 0:
            return
        bit = math.log(2)
        metrics.log_scalar("loss", total("loss") / sample_size / bit, sample_size, round=3)
        # Without a label that counts, the value has no weight.
        metrics.log_scalar("nll_loss", total("nll_loss") / max(1, targets) / bit, targets, round=3)
        metrics.log_scalar("expire_loss", total("expire_loss") / ntokens / bit, ntokens, round=5)
        metrics.log_derived("ppl", lambda logged: utils.get_perplexity(logged["nll_loss"].avg))
        if logging_outputs[0]["log_bpc"]:
            metrics.log_derived("bpc", lambda logged: meters.safe_round(logged["nll_loss"].avg, 3))

        sizes, layers = total("memory_size") / ntokens, len(logging_outputs[0]["memory_size"])
        metrics.log_scalar("memory_size", sizes.mean(), ntokens, round=1)
        for number in range(layers):
            metrics.log_scalar(f"memory_size_{number}", sizes[number], ntokens, round=1)
        metrics.log_scalar("span_mean", total("span").mean() / ntokens, ntokens, round=1)
        metrics.log_custom(MaxMeter, "span_max", max(utils.item(log["span_max"].max()) for log in logging_outputs))
        batches = utils.item(total("batches"))
        metrics.log_scalar("memory_mb", total("memory_bytes") / batches / 2**20, batches, round=2)
        if "cut_by_budget" in logging_outputs[0]:
            metrics.log_scalar("cut_by_budget", 100 * total("cut_by_budget") / ntokens, ntokens, round=2)
        if "missed" in logging_outputs[0]:
            log_error("error", missed=total("missed"), of=targets)
        if "answers" in logging_outputs[0]:
            log_error("answer_error", missed=total("wrong_answers"), of=total("answers"))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Returns True: fairseq adds the values of all processes up. Its other way needs a GPU.

        For a maximum see :func:`scatter_to_rank`.
        """
        return True


def log_error(name: str, *, missed: Tensor | int, of: Tensor | int) -> None:
    """Logs an error in percent, weighted by the number of cases; None if there are none, so that the name shows."""
    missed, of = utils.item(missed), utils.item(of)
    metrics.log_scalar(name, 100 * missed / of if of else None, of, round=2)


def log_label_errors(logging_outputs: List[Dict[str, Any]], labels: Dictionary) -> None:
    """Logs the error of each label as ``error_<label>``, where the criterion has counted them.

    Args:
        logging_outputs: of the criterion.
        labels: the dictionary of the labels.
    """
    if "label_counts" not in logging_outputs[0]:
        return
    counts, missed = (sum(log[key] for log in logging_outputs) for key in ("label_counts", "label_missed"))
    for number in range(labels.nspecial, len(labels)):
        log_error(f"error_{labels[number]}", missed=missed[number], of=counts[number])


def scatter_to_rank(value: Tensor, micro_batch: int, micro_batches: int) -> Tensor:
    """Returns a vector with one place per process and micro-batch, all zero but for the value of this one.

    The sum of such vectors over processes and micro-batches holds all values, and so their maximum.

    Args:
        value: a scalar, not negative.
        micro_batch: the micro-batch of an update that the value belongs to.
        micro_batches: how many micro-batches an update of this process has.
    """
    processes = distributed_utils.get_data_parallel_world_size()
    # Without several processes fairseq has no ranks.
    rank = distributed_utils.get_data_parallel_rank() if processes > 1 else 0
    places = value.new_zeros(processes * micro_batches)
    places[rank * micro_batches + micro_batch] = value
    return places
