"""Checkpoints of small models with random weights, and data for them, made in this process."""

import commands
import scripts
import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import OmegaConf


def prepare(folder, level, text, *given):
    """Makes a data-bin whose splits all hold the text."""
    (folder / "text").write_bytes(text if isinstance(text, bytes) else text.encode())
    splits = [part for split in ("train", "valid", "test") for part in (f"--{split}", str(folder / "text"))]
    scripts.load("text").main(["--level", level, "--dest", str(folder / "bin"), *splits, *given])
    return folder / "bin"


def write_checkpoint(path, data, *given, arch="expire_span_lm", seed=0):
    """Writes the part of a checkpoint that its readers need: options and weights."""
    spans = commands.SPANS.get(arch, ["--max-span", "64"])
    arguments = [
        data, "--user-dir", commands.USER_DIR, "--task", "memory_caching_lm", "--arch", arch, *commands.MODEL, *spans,
        "--criterion", "expire_span_loss", *given,
    ]  # fmt: skip
    parser = options.get_training_parser()
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, [str(part) for part in arguments]))
    torch.manual_seed(seed)
    model = tasks.setup_task(cfg.task).build_model(cfg.model)
    # Larger weights make predictions differ; an adaptive softmax has no such layer.
    if model.decoder.model.output_projection is not None:
        model.decoder.model.output_projection.weight.data.mul_(4)
    torch.save(
        {"args": None, "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True), "model": model.state_dict()},
        path,
    )
    return path
