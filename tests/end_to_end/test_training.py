"""``fairseq-train`` and ``fairseq-hydra-train`` with common options."""

import math
import re
import shutil

import commands
import pytest
import yaml

METRICS = ["loss", "nll_loss", "ppl", "bpc", "expire_loss", "span_mean", "span_max", "memory_size", "memory_size_0",
           "memory_size_1", "memory_mb"]  # fmt: skip


def losses(output):
    return [line["loss"] for line in commands.logged(output, "train_inner")]


def test_learns_and_logs(trained):
    _, output = trained
    steps, valid = commands.logged(output, "train_inner"), commands.logged(output, "valid")
    assert len(steps) == 40 and steps[-1]["nll_loss"] < steps[0]["nll_loss"] - 1
    for name in METRICS:
        assert math.isfinite(steps[-1][name]), name
        assert math.isfinite(valid[-1]["valid_" + name]), name
    first = steps[0]
    assert first["loss"] == pytest.approx(first["nll_loss"] + first["expire_loss"], abs=2e-3)
    assert valid[-1]["valid_bpc"] == pytest.approx(valid[-1]["valid_nll_loss"])
    assert valid[-1]["valid_ppl"] == pytest.approx(2 ** valid[-1]["valid_nll_loss"], rel=0.01)
    last = steps[-1]
    assert last["memory_size"] == pytest.approx((last["memory_size_0"] + last["memory_size_1"]) / 2, abs=0.1)
    assert 0 < last["span_mean"] <= last["span_max"] <= 256


def test_validation_leaves_training_untouched(data_bin, trained, tmp_path):
    without = commands.train(data_bin, tmp_path, "--disable-validation", updates=40)
    assert losses(without) == losses(trained[1])


def test_the_penalty_shortens_spans(data_bin, tmp_path):
    dear = commands.train(data_bin, tmp_path, "--expire-loss-weight", "0.1", "--disable-validation", updates=40)
    free = commands.train(data_bin, tmp_path / "free", "--expire-loss-weight", "0", "--disable-validation", updates=40)
    dear, free = (commands.logged(output, "train_inner")[-1] for output in (dear, free))
    assert dear["span_mean"] < 0.7 * free["span_mean"]
    assert dear["memory_size"] < free["memory_size"]
    assert free["expire_loss"] == 0


def test_update_freq_is_a_larger_batch(data_bin, tmp_path):
    """Micro-batches with a memory each give the updates of one batch of all the rows."""
    groups = commands.train(data_bin, tmp_path, "--batch-size", "4", "--update-freq", "2", "--disable-validation")
    batch = commands.train(data_bin, tmp_path / "batch", "--batch-size", "8", "--disable-validation")
    assert losses(groups) == pytest.approx(losses(batch), abs=2e-3)


def test_epochs_restart_their_streams(data_bin, tmp_path):
    """Without learning, the second epoch repeats the first: from an empty memory, in order, with all tokens."""
    epoch = commands.train(data_bin, tmp_path, "--lr", "1e-30", "--max-epoch", "2", "--disable-validation",
                           "--tokens-per-sample", "128", updates=1000)  # fmt: skip
    values = losses(epoch)
    half = len(values) // 2
    assert len(values) == 2 * math.ceil(60000 / 8 / 128)
    assert values[:half] == values[half:]
    assert commands.logged(epoch, "train")[0]["train_wpb"] * half == pytest.approx(60000, rel=1e-3)


def test_patience_metrics_tensorboard_and_workers(data_bin, tmp_path):
    output = commands.train(
        data_bin, tmp_path / "ck", "--tensorboard-logdir", tmp_path / "board",
        "--best-checkpoint-metric", "memory_size", "--patience", "2", "--lr", "1e-30", "--save-interval-updates", "2",
        "--batch-size-valid", "3", "--num-workers", "2", updates=100,
    )  # fmt: skip
    assert "early stop since valid performance hasn't improved" in output
    valid = commands.logged(output, "valid")
    assert len(valid) == 3
    assert valid[-1]["valid_best_memory_size"] == valid[0]["valid_memory_size"]
    assert valid[0]["valid_bsz"] == 3
    assert list((tmp_path / "board").rglob("events.out.tfevents*"))
    assert (tmp_path / "ck" / "checkpoint_best.pt").exists()


def test_continues_from_its_checkpoint(data_bin, trained, tmp_path):
    shutil.copy(trained[0] / "checkpoint_last.pt", tmp_path)
    output = commands.train(data_bin, tmp_path, "--disable-validation", updates=42)
    assert [line["num_updates"] for line in commands.logged(output, "train_inner")] == [41, 42]
    assert re.search("the memory is made again by reading the last 288 tokens of each row: .* is missing", output)


def test_hydra(data_bin, tmp_path):
    config = commands.ROOT / "examples" / "quickstart" / "hydra"
    settings = yaml.safe_load((config / "tiny.yaml").read_text())
    assert settings["model"]["_name"] == "expire_span_lm"
    output = commands.run(
        commands.tool("fairseq-hydra-train"), "--config-dir", config, "--config-name", "tiny",
        f"common.user_dir={commands.USER_DIR}", f"task.data={data_bin}", f"checkpoint.save_dir={tmp_path}/ck",
        "optimization.max_update=2", "model.decoder_layers=1", "model.decoder_embed_dim=32",
        "model.decoder_attention_heads=2", "model.max_span=128", "model.span_init=32", "common.log_format=json",
        "dataset.batch_size=4", f"hydra.run.dir={tmp_path}", cwd=tmp_path,
    )  # fmt: skip
    log = output + "".join(path.read_text() for path in tmp_path.rglob("*.log"))
    assert commands.logged(log, "valid")[-1]["valid_num_updates"] == 2


@pytest.mark.parametrize(
    "given, message",
    [
        (
            ["dataset.max_tokens_valid=5"],
            r"ValueError: .* exceeds --max-tokens-valid 5: .* \(in a config file: dataset.batch_size, "
            r"task.tokens_per_sample, dataset.max_tokens_valid\)",
        ),
        (["model.span_init=0"], "ValueError: span_init .* expected more than 0.*"),
        (
            ["checkpoint.best_checkpoint_metric=bcp"],
            r"ValueError: --best-checkpoint-metric bcp: .*checkpoint.best_checkpoint_metric.*\)",
        ),
        (["checkpoint.write_checkpoints_asynchronously=true"], "ValueError: --write-checkpoints-asynchronously .*"),
        (["dataset.valid_subset=dev"], "FileNotFoundError: no split 'dev' in .*"),
    ],
    ids=lambda value: value[0].partition("=")[0] if isinstance(value, list) else "",
)
def test_hydra_shows_the_error_last(data_bin, tmp_path, given, message):
    config = commands.ROOT / "examples" / "quickstart" / "hydra"
    output = commands.run(
        commands.tool("fairseq-hydra-train"), "--config-dir", config, "--config-name", "tiny", f"task.data={data_bin}",
        f"checkpoint.save_dir={tmp_path / 'save'}", f"common.user_dir={commands.USER_DIR}", "common.cpu=true",
        "dataset.num_workers=0", "task.tokens_per_sample=32", "dataset.batch_size=4", f"hydra.run.dir={tmp_path}",
        *given, cwd=tmp_path, code=1,
    )  # fmt: skip
    assert re.fullmatch(message, output.rstrip("\n").splitlines()[-1])
