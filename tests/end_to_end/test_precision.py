"""fairseq's precisions on a CPU, with their real models, optimizers and loss scalers.

fairseq has three things for GPUs alone. Fixtures replace them by what a CPU has: autocast and its scaler for automatic
mixed precision, and in :func:`overflow_on_a_cpu` the zero that stands for the norm of a gradient that overflowed.
"""

import sys
from functools import partial

import commands
import processes
import pytest
import torch
import training
from fairseq_cli import eval_lm

from fairseq_expire.modules import layer

FP16 = ["--fp16", "--fp16-no-flatten-grads", "--fp16-init-scale", "16"]
PRECISIONS = {
    "fp16": FP16,
    "memory-efficient-fp16": ["--memory-efficient-fp16", "--fp16-init-scale", "16"],
    "bf16": ["--bf16"],
    "memory-efficient-bf16": ["--memory-efficient-bf16"],
    "amp": ["--amp", "--fp16-init-scale", "16"],
}
OTHERS = ["adaptive_span_lm", "transformer_xl_lm", "compressive_transformer_lm"]


def options(data, *given, **named):
    return processes.options(data, "--batch-size", "2", "--optimizer", "adam", "--lr", "0.003", *given, **named)


@pytest.fixture
def amp_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda.amp, "autocast", partial(torch.autocast, "cpu", dtype=torch.float16))
    monkeypatch.setattr(torch.cuda.amp, "GradScaler", partial(torch.amp.GradScaler, "cpu"))


@pytest.fixture
def overflow_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)


@pytest.fixture
def spans(monkeypatch):
    """Set of the types of all spans from which masks are made."""
    seen, attend = set(), layer.attend

    def recorded(*arguments, visibility, **named):
        seen.add(visibility.span.dtype)
        return attend(*arguments, visibility=visibility, **named)

    monkeypatch.setattr(layer, "attend", recorded)
    return seen


def weights(run):
    return {name: parameter.detach().clone() for name, parameter in run.trainer.get_model().named_parameters()}


@pytest.mark.parametrize(
    "arch, precision",
    [
        *(("expire_span_lm", precision) for precision in PRECISIONS),
        *((arch, "fp16") for arch in OTHERS),
        ("compressive_transformer_lm", "amp"),
    ],
)
def test_trains_as_in_full_precision(data_bin, tmp_path, amp_on_a_cpu, spans, arch, precision):
    """Spans are in float32. Training starts with an empty memory, where the first token of each row sees nothing."""

    def trained(*given):
        run = training.start(options(data_bin, *given, arch=arch), tmp_path)
        losses = [run.step()["nll_loss"] for _ in range(4)]
        assert all(value.isfinite().all() for value in weights(run).values())
        return losses, weights(run)["decoder.model.embed_tokens.weight"]

    (low, rounded), (full, exact) = trained(*PRECISIONS[precision]), trained()
    assert spans == {torch.float32}
    assert low == pytest.approx(full, rel=0.02)
    assert not torch.equal(rounded.float(), exact)


@pytest.mark.parametrize("precision", ["fp16", "memory-efficient-fp16"])
def test_an_overflow_skips_the_update_but_not_the_text(data_bin, tmp_path, monkeypatch, overflow_on_a_cpu, precision):
    """The weights stay the same, and the text and the memory go on."""
    seen = training.record_memories(monkeypatch)
    run = training.start(options(data_bin, *PRECISIONS[precision]), tmp_path)
    run.step(), run.step()
    scaler = run.trainer.optimizer.scaler
    scaler.loss_scale, before = 2.0**30, weights(run)
    assert run.step() is None
    assert scaler.loss_scale == 2.0**29 and run.trainer.get_num_updates() == 2
    assert all(torch.equal(before[name], value) for name, value in weights(run).items())
    scaler.loss_scale = 16.0
    assert run.step()["nll_loss"] < 10
    assert [memory.layers[1].tokens_read[0] for memory in seen[1:]] == [8, 16, 24]
    assert seen[3].layers[1].age.min() == 1


def test_amp_runs_a_batch_that_overflowed_again_from_the_same_memory(data_bin, tmp_path, monkeypatch, amp_on_a_cpu):
    seen = training.record_memories(monkeypatch)
    run = training.start(options(data_bin, *PRECISIONS["amp"]), tmp_path)
    run.step(), run.step()
    run.trainer.optimizer.scaler._scale.fill_(2.0**30)
    run.trainer.optimizer.scaler._backoff_factor = 2.0**-26
    before = weights(run)
    assert run.step() is not None
    assert len(seen) == 4 and seen[3] is seen[2] is not None
    assert run.trainer.get_num_updates() == 3
    assert any(not torch.equal(before[name], value) for name, value in weights(run).items())


def infinite_state(layer, given, out):
    """Acts as if token 3 of the first row had overflowed in a layer."""
    hidden = out.hidden.clone()
    hidden[0, 3] = torch.inf
    return out._replace(hidden=hidden)


@pytest.mark.parametrize(
    "arch, given",
    [("expire_span_lm", []), ("transformer_xl_lm", []), ("compressive_transformer_lm", [])],
)
def test_a_forward_pass_that_overflows_leaves_nothing_in_the_memory(
    data_bin, tmp_path, monkeypatch, overflow_on_a_cpu, arch, given
):
    """Otherwise all later blocks would overflow as well, and training would end."""
    seen = training.record_memories(monkeypatch)
    run = training.start(options(data_bin, *FP16, "--decoder-normalize-before", *given, arch=arch), tmp_path)
    run.step(), run.step()
    hook = run.stack.layers[0].register_forward_hook(infinite_state)
    assert run.step() is None
    hook.remove()
    assert all(run.step() is not None for _ in range(4))
    assert all(value.isfinite().all() for value in weights(run).values())
    # Only the second layer, whose input overflowed, lacks it.
    first, second = (held.age.tolist() for held in seen[3].layers)
    assert all(row[-8:] == [8, 7, 6, 5, 4, 3, 2, 1] for row in (*first, second[1]))
    assert second[0][-7:] == [8, 7, 6, 4, 3, 2, 1]


def test_scores_in_half_precision(data_bin, checkpoint, monkeypatch, caplog):
    """Only a part of the test split, since half precision is slow on a CPU."""
    seen, losses = training.record_memories(monkeypatch), []
    for given in ([], ["--fp16"]):
        arguments = [
            "fairseq-eval-lm", data_bin, "--path", checkpoint, "--user-dir", commands.USER_DIR,
            "--task", "memory_caching_lm", "--gen-subset", "test", "--cpu", "--num-workers", "0", "--num-shards", "10",
            "--tokens-per-sample", "100", *given,
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
        caplog.clear()
        with caplog.at_level("INFO"):
            eval_lm.cli_main()
        tokens, loss = commands.scored(caplog.text)
        assert tokens == 300
        losses.append(loss)
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert {memory.layers[0].keys.dtype for memory in seen if memory} == {torch.float32, torch.float16}
