"""Faults in training: NaN, a batch that is too large, a process without text. And data-loading workers."""

import processes
import pytest
import torch
import training
from fairseq.models import FairseqLanguageModel
from fairseq.optim import FairseqOptimizer

from fairseq_expire.modules import LanguageModel

BLOCK = 8
NAN, INF = float("nan"), float("inf")
OURS, THEIRS = "expire_span_loss", "cross_entropy"


def fail_once(monkeypatch, owner, name, call):
    """Makes one call of a method, counted from 1, end with the error of a GPU that is out of memory."""
    method, calls = getattr(owner, name), iter(range(1, 1000))

    def failing(*arguments, **named):
        result = method(*arguments, **named)
        if next(calls) == call:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return result

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize(
    "arch, options, criterion, parameter, value, named",
    [
        (
            "expire_span_lm",
            [],
            OURS,
            "layers.1.query_proj.weight",
            NAN,
            "NaN detected in output of layers.1.query_proj",
        ),
        ("expire_span_lm", [], OURS, "layers.0.fc1.bias", INF, "Inf detected in output of layers.0.fc1"),
        (
            "expire_span_lm",
            ["--checkpoint-activations"],
            OURS,
            "layers.0.value_proj.weight",
            NAN,
            "output of layers.0.value_proj",
        ),
        (
            "expire_span_lm",
            [],
            OURS,
            "layers.1.policy.predictor.bias",
            NAN,
            "NaN detected in output of layers.1.policy",
        ),
        # The loss does not show it: a state whose span is NaN is only hidden.
        (
            "expire_span_lm",
            [],
            THEIRS,
            "layers.1.policy.predictor.bias",
            NAN,
            "NaN detected in output of layers.1.policy",
        ),
        ("adaptive_span_lm", [], THEIRS, "layers.0.policy.ratio", NAN, "NaN detected in output of layers.0.policy"),
        ("transformer_xl_lm", [], OURS, "position", NAN, "NaN detected in output of layers.0"),
    ],
    ids=["query", "ffn", "checkpointed", "span", "span-unpriced", "head-spans", "position"],
)
def test_a_nan_names_the_layer_and_ends_training(
    data_bin, tmp_path, monkeypatch, caplog, arch, options, criterion, parameter, value, named
):
    seen = training.record_memories(monkeypatch)
    run = training.start(processes.options(data_bin, *options, arch=arch, criterion=[criterion]), tmp_path)
    run.step(), run.step()
    with torch.no_grad():
        run.stack.get_parameter(parameter)[..., 0] = value
    with pytest.raises(FloatingPointError):
        run.step()
    assert named.replace("layers", "decoder.model.stack.layers") in caplog.text
    # fairseq reads the batch again to find the layer, from the same memory.
    assert len(seen) == 4 and seen[3] is seen[2] is not None
    assert run.trainer.get_num_updates() == 2


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_batch_too_large_for_memory_is_left_out_and_the_memory_stays_in_step(data_bin, tmp_path, monkeypatch, where):
    seen = training.record_memories(monkeypatch)
    run = training.start(processes.options(data_bin), tmp_path)
    owner, name = {"forward": (LanguageModel, "read"), "backward": (FairseqOptimizer, "backward")}[where]
    fail_once(monkeypatch, owner, name, 3)
    logs = [run.step() for _ in range(5)]
    assert [log is None for log in logs] == [False, False, True, False, False]
    assert run.trainer.get_num_updates() == 4
    # The memory of each block counts all the text before it, also blocks that were skipped.
    assert [0 if memory is None else memory.layers[0].tokens_read[0] for memory in seen] == [
        0,
        BLOCK,
        2 * BLOCK,
        3 * BLOCK,
        4 * BLOCK,
    ]
    youngest = [memory.layers[0].age.min().item() for memory in seen[1:]]
    assert youngest == [1, 1, 1 + BLOCK if where == "forward" else 1, 1]
    if where == "forward":
        assert training.identical(seen[3], seen[2].advance(BLOCK))


def test_a_block_that_does_not_fit_is_validated_again(data_bin, tmp_path, monkeypatch):
    def validated():
        run = training.start(processes.options(data_bin, "--batch-size-valid", "3"), tmp_path)
        run.step()
        blocks = run.trainer.get_valid_iterator("valid").next_epoch_itr(shuffle=False)
        return [run.trainer.valid_step(block)["nll_loss"] for _, block in zip(range(5), blocks)], run.step()["nll_loss"]

    expected = validated()
    fail_once(monkeypatch, FairseqLanguageModel, "forward", 4)
    seen = training.record_memories(monkeypatch)
    assert validated() == expected
    # One block of training, two of validation, and a third that is read twice.
    assert seen[3] is seen[4] is not None


def test_nothing_is_learnt_from_the_dummy_batch_of_a_process_without_text(data_bin, tmp_path):
    """fairseq gives such a process an empty batch and reads the first batch of the text again in its place."""

    def losses(empty_after):
        run = training.start(processes.options(data_bin, "--optimizer", "sgd"), tmp_path)
        read = []
        for number in range(4):
            read.append(run.step()["nll_loss"])
            if number in empty_after:
                run.step({})
        return read

    assert losses(empty_after=[1, 2]) == losses(empty_after=[])


def test_data_workers_change_nothing(data_bin, tmp_path):
    def result(workers):
        run = training.start(processes.options(data_bin, "--num-workers", workers, "--dropout", "0.1"), tmp_path)
        losses = [run.step()["loss"] for _ in range(6)]
        return losses, run.trainer.get_model().state_dict()

    losses, expected = result(0)
    for workers in (1, 4):
        others, state = result(workers)
        assert others == losses
        assert all(torch.equal(state[name], value) for name, value in expected.items())
