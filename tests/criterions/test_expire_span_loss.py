"""The loss, which is the paper's objective in fairseq's convention, and the logged values."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.logging import meters, metrics
from fairseq.modules import AdaptiveSoftmax

from fairseq_expire.criterions.expire_span_loss import ExpireSpanLoss, log_label_errors
from fairseq_expire.fairseq_patches.meters import MaxMeter
from fairseq_expire.modules import LayerReport, Memory

PAD, ROWS, BLOCK, SYMBOLS = 1, 2, 4, 9


def criterion(weight=0.5, sentence_avg=False, level="bytes"):
    dictionary = SimpleNamespace(pad=lambda: PAD)
    return ExpireSpanLoss(
        SimpleNamespace(target_dictionary=dictionary, label_dictionary=None, level=level), weight, sentence_avg
    )


def sample():
    target = torch.tensor([[4, 5, 6, 7], [8, 4, 5, PAD]])
    return {"net_input": {"src_tokens": target}, "target": target, "ntokens": 7}


def reports():
    return tuple(
        LayerReport(
            span=torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 1000.0]]).unsqueeze(-1) * layer,
            penalty=torch.tensor([3.0, 4.0]) * layer,
            cut_by_budget=None,
            # All that is asked of it.
            visibility=SimpleNamespace(sizes=partial(torch.full, (ROWS, BLOCK), 10 * layer)),
        )
        for layer in (1, 2)
    )


def model(scores, adaptive_softmax=None):
    memory = Memory.empty(batch=ROWS, num_layers=2, embed_dim=8, like=scores)

    def forward(src_tokens):
        return scores, {"reports": reports(), "memory": memory}

    forward.training = True
    forward.decoder = SimpleNamespace(adaptive_softmax=adaptive_softmax)
    return forward


@pytest.fixture
def scores():
    return torch.randn(ROWS, BLOCK, SYMBOLS, generator=torch.Generator().manual_seed(0))


def test_loss_per_token_is_the_papers_objective(scores):
    """Mean cross-entropy + alpha * mean over rows of the sum of e / (R * T), where all rows are full."""
    batch = {**sample(), "target": torch.full((ROWS, BLOCK), 4), "ntokens": ROWS * BLOCK}
    loss, sample_size, _ = criterion()(model(scores), batch)
    nll = -scores.log_softmax(-1)[..., 4].mean()
    penalty = sum(report.penalty for report in reports()).mean() / BLOCK
    torch.testing.assert_close(loss / sample_size, nll + 0.5 * penalty)


def test_padding_is_not_a_target(scores):
    _, sample_size, log = criterion()(model(scores), sample())
    logprobs = scores.log_softmax(-1)
    target = sample()["target"]
    expected = -sum(logprobs[b, t, target[b, t]] for b in range(ROWS) for t in range(BLOCK) if target[b, t] != PAD)
    torch.testing.assert_close(log["nll_loss"], expected)
    assert sample_size == 7
    assert criterion(sentence_avg=True)(model(scores), sample())[1] == ROWS


def test_adaptive_softmax_gives_the_loss_of_its_log_probabilities():
    torch.manual_seed(0)
    softmax = AdaptiveSoftmax(SYMBOLS, 8, [4, 6], dropout=0.0, factor=2).eval()
    features = torch.randn(ROWS, BLOCK, 8)
    _, _, log = criterion()(model(features, softmax), sample())
    target = sample()["target"]
    picked = softmax.get_log_prob(features, None).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(log["nll_loss"], -(picked * (target != PAD)).sum())


def reduced(*logs):
    metrics.reset()
    with metrics.aggregate() as logged:
        ExpireSpanLoss.reduce_metrics(list(logs))
    return logged.get_smoothed_values()


def test_logged_values(scores):
    _, _, log = criterion()(model(scores), sample())
    values = reduced(log)
    assert values["loss"] == pytest.approx(values["nll_loss"] + values["expire_loss"], abs=2e-3)
    assert values["expire_loss"] == pytest.approx(0.5 * 21 / 7 / math.log(2), abs=1e-4)
    assert values["ppl"] == pytest.approx(2 ** values["nll_loss"], rel=1e-2)
    assert values["bpc"] == values["nll_loss"]
    assert (values["memory_size_0"], values["memory_size_1"], values["memory_size"]) == (10, 20, 15)
    # The padding, with a span of 1000, is left out.
    assert values["span_mean"] == pytest.approx((1 + 2 + 3 + 4 + 5 + 6 + 7) / 7 * 1.5)
    assert values["span_max"] == 14
    assert values["memory_mb"] == 0


def test_processes_are_added_up_and_maxima_are_kept(scores):
    one, two = (criterion()(model(scores), sample())[2] for _ in range(2))
    two = {**two, "span_max": torch.tensor(99.0), "memory_size": two["memory_size"] * 3}
    values = reduced(one, two)
    assert values["span_max"] == 99
    assert values["memory_size"] == 30
    assert values["nll_loss"] == reduced(one)["nll_loss"]


def test_fairseq_may_sum_the_logs(scores):
    """With several processes, reduce_metrics gets only the sum of their logs; here those of two micro-batches."""
    one, two = (
        criterion()(model(scores * by), {**sample(), "micro_batch": micro_batch, "micro_batches": 2})[2]
        for micro_batch, by in ((0, 1), (1, 3))
    )
    assert ExpireSpanLoss.logging_outputs_can_be_summed()
    two = {**two, "span_max": two["span_max"] * 9, "memory_bytes": 2**22}
    summed = {name: one[name] + two[name] for name in one}
    assert reduced(summed) == reduced(one, two)
    assert reduced(summed)["span_max"] == 9 * 14 and reduced(summed)["memory_mb"] == 2


LABELS = Dictionary()
for name in "xyz":
    LABELS.add_symbol(name)


def of_labels(*, training=False, target=((4, 5, 6), (6, PAD, PAD)), answers=((3, 1, 5), (7, 0, 0))):
    """Returns loss, sample size and log of a labelled batch, and its scores [B, C, V]."""
    scores = torch.randn(ROWS, 3, len(LABELS), generator=torch.Generator().manual_seed(1))
    # The most likely labels are 4, 4 and 6; 6.
    for (row, place), label in zip([(0, 0), (0, 1), (0, 2), (1, 0)], (4, 4, 6, 6)):
        scores[row, place, label] = 9
    batch = {
        "net_input": {"src_tokens": sample()["target"]},
        "target": torch.tensor(target),
        "answers": torch.tensor(answers, dtype=torch.uint8),
        "labels_per_token": 0.25,
        "ntokens": 7,
        "micro_batch": 0,
        "offset": 0,
    }
    made = model(scores)
    made.training = training
    task = SimpleNamespace(target_dictionary=LABELS, label_dictionary=LABELS, level=None)
    return *ExpireSpanLoss(task, 0.5, False)(made, batch), scores


def test_only_labels_that_count_have_a_loss():
    loss, sample_size, log, scores = of_labels()
    logprobs = scores.log_softmax(-1)
    nll = -(logprobs[0, 0, 4] + logprobs[0, 1, 5] + logprobs[0, 2, 6] + logprobs[1, 0, 6])
    torch.testing.assert_close(log["nll_loss"], nll)
    # An update with as many labels as the split has on average: mean cross-entropy and mean penalty of a token.
    assert sample_size == 7 * 0.25 and log["targets"] == 4
    torch.testing.assert_close(loss / sample_size, nll / sample_size + 0.5 * 21 / 7)


def test_errors_of_labels_and_answers():
    _, _, log, _ = of_labels()
    values = reduced(log)
    assert values["error"] == 25
    # The first answer has the missed label.
    assert values["answer_error"] == 50
    assert (log["label_counts"][4:].tolist(), log["label_missed"][4:].tolist()) == ([1, 1, 2], [0, 1, 0])
    with metrics.aggregate(new_root=True) as logged:
        log_label_errors([log, log], LABELS)
    assert logged.get_smoothed_values() == {"error_x": 0, "error_y": 100, "error_z": 0}


def test_training_counts_all_labels_together():
    _, _, log, _ = of_labels(training=True)
    assert "label_counts" not in log and "answers" not in log
    assert reduced(log)["error"] == 25


def test_a_batch_without_a_label_that_counts():
    loss, sample_size, log, _ = of_labels(target=((PAD,) * 3,) * 2, answers=((0,) * 3,) * 2)
    assert loss / sample_size == pytest.approx(0.5 * 21 / 7) and log["targets"] == 0
    values = reduced(log)
    # The names are there: a run asks the first batch which metrics it may use.
    assert values["error"] is None and values["answer_error"] is None
    other = of_labels()[2]
    both = reduced({name: log[name] + other[name] for name in log})
    assert both["error"] == reduced(other)["error"] and both["nll_loss"] == reduced(other)["nll_loss"]


def test_words_have_no_bits_per_character(scores):
    assert "bpc" not in reduced(criterion(level="words")(model(scores), sample())[2])
    assert "bpc" not in reduced(criterion(level=None)(model(scores), sample())[2])


def test_fairseq_restores_the_maximum_from_a_checkpoint():
    saved = meters.MetersDict()
    saved.add_meter("span_max", MaxMeter(), 0)
    saved["span_max"].update(torch.tensor(7.0))
    restored = meters.MetersDict()
    restored.load_state_dict(saved.state_dict())
    restored["span_max"].update(3.0)
    assert restored.get_smoothed_value("span_max") == 7


def test_negative_weight():
    with pytest.raises(ValueError, match=r"--expire-loss-weight.*got -1"):
        criterion(weight=-1)
