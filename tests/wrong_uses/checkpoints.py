"""Checkpoints that are missing, damaged, of something else, or dangerous."""

import pickle

import torch

from wrong_uses import Use
from wrong_uses.data import REVERSED

MODEL = "model.pt"


def cut_to(share):
    """Keeps this share of the file."""

    def damage(folder):
        content = (folder / MODEL).read_bytes()
        (folder / MODEL).write_bytes(content[: int(share * len(content))])

    return damage


def replaced_by(content):
    return lambda folder: (folder / MODEL).write_bytes(content)


def missing(folder):
    (folder / MODEL).unlink()


def a_folder(folder):
    missing(folder)
    (folder / MODEL).mkdir()


def changed(change):
    """Changes the content of the file."""

    def damage(folder):
        state = torch.load(folder / MODEL)
        torch.save(change(state) or state, folder / MODEL)

    return damage


class Command:
    """An object that writes a file when it is unpickled."""

    def __reduce__(self):
        return exec, ("open('it_ran', 'w')",)


def as_last(damage):
    """Moves the file to where training looks for the last checkpoint."""

    def moved(folder):
        damage(folder)
        (folder / "save").mkdir()
        (folder / MODEL).rename(folder / "save" / "checkpoint_last.pt")

    return moved


half = cut_to(0.5)
code = changed(lambda state: {**state, "command": Command()})
weights = changed(lambda state: state["model"])
OTHER_MODEL = (
    "model.pt was trained with {}, and this run asks for {}: that is part of the trained model; give what it was"
)
NOT_COMPLETE = r"model.pt is no checkpoint, or is cut short \([\d,]+ bytes\): restore it, or take another one"
CODE = (
    r"{} holds more than tensors and plain values \(exec\), which could run any code when it is loaded: it is refused"
)
ANOTHER = (
    "the checkpoint {} was trained with another dictionary than the data's dict.txt .*: give the data it was trained on"
)
# As they were named before the decoder had a model of its own.
older = changed(
    lambda state: state.update(
        model={name.replace("decoder.model.", "decoder."): value for name, value in state["model"].items()}
    )
)
OLDER = "the checkpoint was written by an earlier version of fairseq_expire, .*: use that version, or train it again"
NO_MODEL = "model.pt holds no model with its options: expected a checkpoint that fairseq-train wrote"

USES = [
    Use("no checkpoint", "eval-lm", "", "Model file not found: model.pt", missing),
    Use("a folder of checkpoints", "eval-lm", "", "model.pt is a folder: give a checkpoint in it", a_folder),
    Use("half a checkpoint", "eval-lm", "", NOT_COMPLETE, half),
    Use("half a checkpoint to validate", "validate", "", NOT_COMPLETE, half),
    Use("a checkpoint of no bytes", "eval-lm", "", NOT_COMPLETE, cut_to(0)),
    Use("a text", "eval-lm", "", NOT_COMPLETE, replaced_by(b"epoch 1: loss 2.3\n")),
    Use("something pickled", "eval-lm", "", NOT_COMPLETE, replaced_by(pickle.dumps({"model": {}}))),
    Use("weights alone", "eval-lm", "", NO_MODEL, weights),
    Use("a checkpoint that carries code", "eval-lm", "", CODE.format("model.pt"), code),
    Use("code to go on from", "train", "", CODE.format("save/checkpoint_last.pt"), as_last(code)),
    Use("code to start from", "train", "--finetune-from-model model.pt", CODE.format("model.pt"), code),
    Use(
        "a weight that is not there",
        "eval-lm",
        "",
        r"weight model.stack.position of shape \[32, 16\] where the checkpoint has none: give the options",
        changed(lambda state: state["model"].__delitem__("decoder.model.stack.position")),
    ),
    Use(
        "a checkpoint of another architecture",
        "eval-lm",
        "",
        "memory_caching_lm reads with a memory, which TransformerLanguageModel does not have: .* a checkpoint of one",
        changed(lambda state: state["cfg"]["model"].update(_name="transformer_lm", max_target_positions=64)),
    ),
    Use(
        "another model to go on from",
        "train",
        "--restore-file model.pt --decoder-ffn-embed-dim 32",
        OTHER_MODEL.format("--decoder-ffn-embed-dim 64", "--decoder-ffn-embed-dim 32"),
    ),
    Use(
        "other spans to go on with",
        "train",
        "--restore-file model.pt --max-span 512 --span-ramp 8",
        OTHER_MODEL.format("--max-span 256, --span-ramp 16", "--max-span 512, --span-ramp 8")
        + ".* with --finetune-from-model",
    ),
    Use(
        "borders to go on with",
        "train",
        "--restore-file model.pt --break-memory-at-eos",
        OTHER_MODEL.format("--break-memory-at-eos off", "--break-memory-at-eos on") + ".* with --finetune-from-model",
    ),
    Use(
        "one matrix instead of two to go on with",
        "train",
        "--restore-file model.pt --share-decoder-input-output-embed",
        OTHER_MODEL.format("--share-decoder-input-output-embed off", "--share-decoder-input-output-embed on"),
    ),
    Use(
        "one matrix for weights of two",
        "train",
        "--finetune-from-model model.pt --share-decoder-input-output-embed --max-span 512",
        OTHER_MODEL.format("--share-decoder-input-output-embed off", "--share-decoder-input-output-embed on"),
    ),
    Use(
        "another architecture to go on with",
        "train",
        "--restore-file model.pt --reset-optimizer",
        OTHER_MODEL.format("--arch expire_span_lm", "--arch transformer_xl_lm"),
        arch="transformer_xl_lm",
    ),
    Use(
        "another preset to go on with",
        "train",
        "--restore-file model.pt --span-init 3",
        OTHER_MODEL.format("--decoder-normalize-before off, .*", "--decoder-normalize-before on, .*"),
        arch="expire_span_lm_tiny",
    ),
    *(
        Use(
            f"an override that is misspelt, {command}",
            command,
            "--model-overrides {'span_limt':64}",
            r"no option span_limt to override in the checkpoint \(is span_limit meant\?\): .*max_span",
        )
        for command in ("eval-lm", "validate")
    ),
    Use(
        "overrides that are no dictionary",
        "eval-lm",
        "--model-overrides {'span_limit'}",
        r"overrides are a dictionary such as \{'span_limit': 1024\}, got \{'span_limit'\}",
    ),
    Use(
        "an override of another architecture",
        "eval-lm",
        "--model-overrides {'compressed_size':64}",
        "no option compressed_size to override in the checkpoint",
    ),
    Use(
        "half a checkpoint to go on from",
        "train",
        "",
        r"save/checkpoint_last.pt is cut short \(\d+ bytes are left\) and no complete checkpoint lies beside it: "
        r"delete it",
        as_last(half),
    ),
    Use("another dictionary to go on with", "train", "--restore-file model.pt", ANOTHER.format("model.pt"), REVERSED),
    Use(
        "another dictionary to start with",
        "train",
        "--finetune-from-model model.pt",
        ANOTHER.format("model.pt"),
        REVERSED,
    ),
    Use(
        "another dictionary to average with",
        "train",
        "--store-ema --ema-seed-model model.pt",
        ANOTHER.format("model.pt"),
        REVERSED,
    ),
    Use("another dictionary to validate with", "validate", "", ANOTHER.replace(" {}", ""), REVERSED),
    Use("a checkpoint of an earlier version", "eval-lm", "", OLDER, older),
    Use(
        "one of an earlier version to go on from",
        "train",
        "",
        OLDER.replace("checkpoint", "checkpoint save/checkpoint_last.pt"),
        as_last(older),
    ),
    Use("one of an earlier version to validate", "validate", "", OLDER, older),
    Use("weights to go on from", "train", "--restore-file model.pt", NO_MODEL, weights),
    Use(
        "no checkpoint to go on from",
        "train",
        "--restore-file modle.pt",
        "--restore-file modle.pt: there is no such file, .*look at the spelling",
    ),
]
