"""Recipes of the paper's experiments: script and YAML agree, models have the published sizes, and all of them run."""

import argparse
import copy
import functools
import inspect
import math
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import commands
import numpy as np
import pytest
import scripts
import torch
from fairseq import optim, options
from fairseq.data import Dictionary
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import convert_namespace_to_omegaconf, omegaconf_no_object_check
from fairseq.models import build_model
from fairseq.optim import lr_scheduler
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

EXAMPLES = commands.ROOT / "examples"
CORPORA = ("enwik8", "pg19", "wikitext103")
# Their updates of warm-up.
TASKS = {"copy": 1000, "collision": 1000, "instruction": 8000}
# Small ones are no recipe of the paper.
NAMES = sorted(
    f"{folder}/{path.stem}"
    for folder in (*CORPORA, *TASKS)
    for path in (EXAMPLES / folder).glob("*.sh")
    if not path.stem.startswith("small")
)
COMPRESSIVE = [name for name in NAMES if name.endswith("/compressive_transformer")]
BASE, FINETUNE = "enwik8/expire_span", "enwik8/expire_span_finetune"
# The most different ones; each takes a while.
RUN_ALWAYS = {
    BASE,
    FINETUNE,
    "enwik8/compressive_transformer",
    "enwik8/expire_span_small",
    "pg19/expire_span_32k",
    "wikitext103/expire_span",
    "copy/expire_span_128k",
    "collision/compressive_transformer",
    "instruction/adaptive_span",
}


class Size(NamedTuple):
    """Sizes of a model.

    Args:
        symbols: number of lines in dict.txt of the real corpus.
        ours: number of our parameters.
        paper: number of parameters in the paper.
        missing: number of parameters that only the paper's model has.
        labels: number of lines in the dict.txt of the labels.
    """

    symbols: int
    ours: int
    paper: float | None = None
    missing: int = 0
    labels: int | None = None


SIZES = {
    "enwik8/expire_span": Size(204, 38_055_948, 38e6),
    FINETUNE: Size(204, 38_055_948, 38e6),
    # Transformer-XL projects position encodings in each layer; ours has one table.
    "enwik8/transformer_xl": Size(204, 38_148_096, 41e6, missing=12 * 512**2),
    "enwik8/adaptive_span": Size(204, 38_541_408, 39e6),
    "enwik8/compressive_transformer": Size(204, 38_139_904),
    "enwik8/expire_span_small": Size(204, 6_434_824),
    "pg19/expire_span_8k": Size(3506, 41_437_196),
    "pg19/expire_span_16k": Size(3506, 41_437_196),
    "pg19/expire_span_32k": Size(3506, 41_437_196),
    "wikitext103/expire_span": Size(267_740, 139_097_608, 140e6),
    "copy/expire_span_16k": Size(4, 12_648_454, labels=2),
    "copy/expire_span_128k": Size(4, 12_648_454, labels=2),
    "copy/transformer_xl": Size(4, 12_874_752, labels=2),
    "collision/transformer_xl": Size(42, 12_764_160, labels=4),
    "collision/compressive_transformer": Size(42, 12_960_768, labels=4),
    "collision/adaptive_span": Size(42, 14_730_264, labels=4),
    "collision/expire_span_16k": Size(42, 12_668_934, labels=4),
    "collision/expire_span_32k": Size(42, 12_668_934, labels=4),
    "collision/expire_span_64k": Size(42, 12_668_934, labels=4),
    "collision/easy_transformer": Size(34, 12_792_832, labels=68),
    "collision/easy_expire_span_1k": Size(34, 12_697_606, labels=68),
    "collision/easy_expire_span_2k": Size(34, 12_697_606, labels=68),
    "collision/easy_expire_span_4k": Size(34, 12_697_606, labels=68),
    "instruction/expire_span": Size(380, 19_332_102),
    "instruction/transformer_xl": Size(380, 19_427_328),
    "instruction/adaptive_span": Size(380, 21_393_456),
    "instruction/compressive_transformer": Size(380, 19_460_096),
}

PRESETS = {
    "enwik8/expire_span": "expire_span_lm_enwik8",
    "enwik8/expire_span_small": "expire_span_lm_enwik8_small",
    "pg19/expire_span_16k": "expire_span_lm_pg19",
    "wikitext103/expire_span": "expire_span_lm_wikitext103",
}


def arguments(name):
    """Returns the arguments of a script before fairseq's options."""
    return ["DATA", "SAVE", *(["CHECKPOINT"] if name == FINETUNE else [])]


def script(name):
    return EXAMPLES / f"{name}.sh"


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    """Stand-ins for fairseq's commands that print their arguments."""
    folder = tmp_path_factory.mktemp("stubs")
    for tool in ("fairseq-train", "fairseq-eval-lm"):
        (folder / tool).write_text('#!/bin/sh\nprintf "%s\\n" "--- ${0##*/}" "$@"\n')
        (folder / tool).chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def called(stubs):
    """Returns the commands that a script runs, each as a list of words."""

    def called(name, *given, variables=(), code=0):
        output = commands.run(
            "env", f"PATH={stubs}{os.pathsep}{os.environ['PATH']}", *variables, "bash", script(name), *given, code=code
        )
        return [part.splitlines() for part in output.split("--- ")[1:]]

    return called


def config(words):
    """Returns the configuration that ``fairseq-train`` makes from its arguments."""
    args = options.parse_args_and_arch(options.get_training_parser(), words)
    return convert_namespace_to_omegaconf(args)


@pytest.fixture(scope="module")
def train_config(called):
    """Returns the configuration of a script's training."""
    made = functools.cache(lambda name: config(called(name, *arguments(name))[0][1:]))
    # A copy, since fairseq changes configurations.
    return lambda name: copy.deepcopy(made(name))


def yaml_config(name):
    """Returns the configuration that ``fairseq-hydra-train`` makes from the YAML."""
    path = EXAMPLES / os.path.dirname(name) / "hydra"
    # The command also gives the schema of fairseq the name of the file.
    hydra_init(os.path.basename(name))
    overrides = ["task.data=DATA", "checkpoint.save_dir=SAVE"]
    overrides += ["checkpoint.continue_once=CHECKPOINT"] if name == FINETUNE else []
    with initialize_config_dir(str(path), version_base="1.1"):
        cfg = compose(os.path.basename(name), overrides=overrides)
    with omegaconf_no_object_check():
        add_defaults(cfg)
    return cfg


def plain(cfg):
    return OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)


def dictionary_of(symbols):
    """Returns a dictionary with this number of symbols, besides fairseq's own."""
    dictionary = Dictionary()
    for number in range(symbols):
        dictionary.add_symbol(str(number))
    return dictionary


def build(cfg, symbols, labels=None):
    """Builds the model on the meta device, for dictionaries with these numbers of symbols."""
    dictionary = dictionary_of(symbols)
    label_dictionary = None if labels is None else dictionary_of(labels)
    task = argparse.Namespace(
        source_dictionary=dictionary,
        target_dictionary=label_dictionary or dictionary,
        label_dictionary=label_dictionary,
        level="bytes",
    )
    with torch.device("meta"):
        return build_model(cfg.model, task)


def row(name):
    """Returns the cells of a recipe's row in the table of its README."""
    readme = (script(name).parent / "README.md").read_text()
    [line] = [line for line in readme.splitlines() if f"]({os.path.basename(name)}.sh)" in line]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_all_recipes_are_listed():
    assert sorted(SIZES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_script_and_yaml_agree(name, train_config):
    script_says, yaml_says = plain(train_config(name)), plain(yaml_config(name))
    for group in (
        "task",
        "model",
        "criterion",
        "optimizer",
        "lr_scheduler",
        "optimization",
        "dataset",
        "checkpoint",
        "common",
    ):
        assert script_says[group] == yaml_says[group], group
    backend = "ddp_backend"
    assert script_says["distributed_training"][backend] == yaml_says["distributed_training"][backend]


@pytest.mark.parametrize("name", NAMES)
def test_parameters(name, train_config):
    size = SIZES[name]
    model = build(train_config(name), size.symbols, size.labels)
    ours = sum(parameter.numel() for parameter in model.parameters())
    assert ours == size.ours
    if size.paper:
        assert ours + size.missing == pytest.approx(size.paper, rel=0.03)
    cells = row(name)
    assert f"{ours / 1e6:.1f}M" in cells
    # The tables of the tasks do not have this column.
    assert os.path.dirname(name) in TASKS or (f"{size.paper / 1e6:.0f}M" if size.paper else "") in cells
    assert f"[yaml](hydra/{os.path.basename(name)}.yaml)" in " ".join(cells)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_equal_their_recipes(name, train_config):
    recipe = train_config(name)
    preset = config(
        [
            "DATA",
            "--task",
            "memory_caching_lm",
            "--arch",
            PRESETS[name],
            "--tokens-per-sample",
            str(recipe.task.tokens_per_sample),
        ]
    )
    assert plain(preset.model) == {**plain(recipe.model), "_name": plain(preset.model)["_name"]}


@pytest.mark.parametrize("name", NAMES)
def test_learning_rate(name, train_config):
    cfg = train_config(name)
    optimizer = optim.build_optimizer(cfg.optimizer, [torch.nn.Parameter(torch.zeros(1))])
    schedule = lr_scheduler.build_lr_scheduler(cfg.lr_scheduler, optimizer)
    schedule.step_begin_epoch(1)
    peak, last = cfg.optimization.lr[0], cfg.optimization.max_update
    if name == FINETUNE:
        assert {schedule.step_update(update) for update in (100_000, 100_001, last)} == {peak}
        return
    warmup = TASKS.get(os.path.dirname(name), 8000)
    # The first update has a step of the warm-up already.
    assert schedule.step_update(warmup // 2) == pytest.approx(peak / 2, rel=3e-3)
    assert schedule.step_update(warmup) == pytest.approx(peak)
    middle = (warmup + last) // 2
    if cfg.lr_scheduler._name == "cosine":
        assert schedule.step_update(middle) == pytest.approx(peak / 2)
        assert schedule.step_update(last - 1) == pytest.approx(0, abs=1e-6 * peak)
    else:
        assert {schedule.step_update(update) for update in (warmup, middle, last)} == {peak}


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_rows_does_not_depend_on_gpus(name, called):
    for gpus in (1, 4):
        train = config(called(name, *arguments(name), variables=[f"GPUS={gpus}"])[0][1:])
        expected = 512 if train.model.decoder_embed_dim == 512 else 64
        assert train.dataset.batch_size * train.optimization.update_freq[0] * gpus == expected


@pytest.mark.parametrize("gpus", [0, 3, 16])
def test_the_number_of_gpus_must_divide_the_rows(gpus, called):
    called("enwik8/expire_span", "DATA", "SAVE", variables=[f"GPUS={gpus}"], code=2)


@pytest.mark.parametrize("name", NAMES)
def test_given_options_win_and_both_splits_are_scored(name, called):
    train, *scores = called(name, *arguments(name), "--lr", "7", "--cpu")
    cfg = config(train[1:])
    assert cfg.optimization.lr == [7] and cfg.common.cpu and cfg.checkpoint.save_dir == "SAVE"
    assert [words[words.index("--gen-subset") + 1] for words in scores] == ["valid", "test"]
    for words in scores:
        args = options.parse_args_and_arch(options.get_eval_lm_parser(), words[1:])
        assert (args.data, args.path) == ("DATA", "SAVE/checkpoint_best.pt")


UPDATES = 2
TRIAL = [
    "--cpu", "--max-update", UPDATES, "--batch-size", "1", "--update-freq", "1", "--batch-size-valid", "1",
    "--max-valid-steps", "2", "--tokens-per-sample", "64", "--log-interval", "1", "--num-workers", "0",
]  # fmt: skip
# With a short span, the second block compresses states; the position range stays that of the recipe.
OLD_SOON = {"enwik8": 768 + 1152, "collision": 512 + 2048, "instruction": 512 + 2048}
OLD_SOON = {folder: ["--max-span", "48", "--position-range", size] for folder, size in OLD_SOON.items()}
# Number of characters of source code in each split.
LENGTHS = {"train": 20_000, "valid": 200, "test": 300}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data-bin for each corpus with its kind of symbols, from source code of the standard library."""
    folder = tmp_path_factory.mktemp("recipes")
    source, start = inspect.getsource(argparse), 0
    files = []
    for split, length in LENGTHS.items():
        (folder / split).write_text(source[start : start + length])
        start += length
        files += [f"--{split}", str(folder / split)]
    # As many words as in WikiText-103; those of the text are spread over all clusters of the adaptive softmax.
    symbols = [f"other{number}" for number in range(SIZES["wikitext103/expire_span"].symbols)]
    words = sorted(set(source[:start].split()))
    step = len(symbols) // len(words)
    symbols[: step * len(words) : step] = words
    (folder / "words.txt").write_text("".join(f"{symbol} 1\n" for symbol in symbols))

    text = scripts.load("text")
    text.main(["--level", "bytes", "--dest", str(folder / "enwik8"), *files])
    text.main(["--level", "chars", "--dest", str(folder / "pg19"), *files])
    text.main(["--level", "words", "--dict", str(folder / "words.txt"), "--dest", str(folder / "wikitext103"), *files])
    scripts.load("copy_task").main(["--dest", str(folder / "copy"), "--episodes", "60", "--distance", "1", "60"])
    collision = scripts.load("collision")
    # On a small grid, particles collide in every split.
    collision.main(["--dest", str(folder / "collision"), "--steps", "2000", "--grid", "4"])
    collision.main(["--dest", str(folder / "easy"), "--steps", "2000", "--grid", "4", "--easy"])
    instruction = ["--dest", str(folder / "instruction"), "--episodes", "200", "--mean-distractors", "2"]
    scripts.load("instruction").main(instruction)
    return folder


def folder_of(name):
    """Returns the name of the data that a recipe is for."""
    return "easy" if "/easy_" in name else os.path.dirname(name)


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory, request):
    """Runs scripts on their data, two at a time. Returns futures of their outputs."""
    names = NAMES if request.config.getoption("--long") or request.config.getoption("--recipes") else RUN_ALWAYS
    folder = tmp_path_factory.mktemp("runs")
    env = commands.environment(OMP_NUM_THREADS="1")
    env["PATH"] = f"{commands.write_tools(folder / 'tools', env)}{os.pathsep}{env['PATH']}"

    def run(name):
        given = [data / folder_of(name), folder / name]
        if name == FINETUNE:
            started[BASE].result()
            given += [folder / BASE / "checkpoint_last.pt", *TRIAL, "--max-update", UPDATES + 1]
        else:
            given += TRIAL + (OLD_SOON[os.path.dirname(name)] if name in COMPRESSIVE else [])
        if os.path.dirname(name) in TASKS:
            # The first blocks may have no label that counts, and then there is no error to choose a checkpoint by.
            given += ["--max-valid-steps", "30"]
        # Only fine-tuning needs the optimizer's state of another run; the states are large.
        if name != BASE:
            given += ["--no-save-optimizer-state"]
        return commands.run("bash", script(name), *given, cwd=folder, env=env)

    started = {}
    with ThreadPoolExecutor(2) as executor:
        # The base of fine-tuning comes first.
        for name in sorted(names, key=lambda name: (name != BASE, name)):
            started[name] = executor.submit(run, name)
        yield started
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", NAMES)
def test_runs_at_its_width_and_depth(name, runs, data, train_config):
    if name not in runs:
        pytest.skip("similar to another recipe: runs with --recipes")
    output = runs[name].result()
    cfg = train_config(name)
    steps = commands.logged(output, "train_inner")
    assert [step["num_updates"] for step in steps] == ([UPDATES + 1] if name == FINETUNE else [1, 2])
    assert all(math.isfinite(step["loss"]) for step in steps)
    # The second block sees the memory of the first, also in the last layer.
    sizes = [step[f"memory_size_{cfg.model.decoder_layers - 1}"] for step in steps]
    assert name == FINETUNE or sizes[1] > sizes[0]
    if name in COMPRESSIVE:
        # More than the states: compressed ones, too.
        assert sizes[1] > 48
    # The warm-up has just begun; in fine-tuning it is over.
    share = steps[-1]["lr"] / cfg.optimization.lr[0]
    assert share == 1 if name == FINETUNE else 0 < share < 0.01

    place, labels = data / folder_of(name), None
    if SIZES[name].labels is not None:
        labels = len((place / "label" / "dict.txt").read_text().splitlines())
        place = place / "input0"
    symbols = len((place / "dict.txt").read_text().splitlines())
    parameters = sum(parameter.numel() for parameter in build(cfg, symbols, labels).parameters())
    assert re.findall(r"num\. model params: ([\d,]+)", output) == [f"{parameters:,}"] * 2
    scored = [int(number.replace(",", "")) for number in re.findall(r"Evaluated ([\d,]+) tokens", output)]
    if name.startswith("wikitext103"):
        lengths = [
            len(line.split()) + 1 for split in ("valid", "test") for line in (data / split).read_text().splitlines()
        ]
        assert sum(scored) == sum(lengths)
    elif os.path.dirname(name) in TASKS:
        kind = np.uint16
        assert scored == [os.path.getsize(place / f"{split}.bin") // kind().nbytes for split in ("valid", "test")]
        # The number that the task is judged by.
        assert len(re.findall(r"(?:answer )?error [\d.]+ % of [\d,]+ (?:answers|labels)", output)) >= 2
    else:
        assert scored == [LENGTHS["valid"], LENGTHS["test"]]
    assert all(math.isfinite(float(bits)) for bits in re.findall(r"Loss \(base 2\): (\S+),", output))


@pytest.mark.parametrize("name", ["enwik8/expire_span_small", "copy/expire_span_16k"])
def test_a_yaml_runs(name, data, tmp_path):
    output = commands.run(
        commands.tool("fairseq-hydra-train"), "--config-dir", EXAMPLES / os.path.dirname(name) / "hydra",
        "--config-name", os.path.basename(name), f"common.user_dir={commands.USER_DIR}", "common.cpu=true",
        f"task.data={data / os.path.dirname(name)}", "task.tokens_per_sample=64", f"checkpoint.save_dir={tmp_path}/ck",
        "checkpoint.no_save_optimizer_state=true", f"optimization.max_update={UPDATES}", "dataset.batch_size=1",
        "dataset.max_valid_steps=2", f"hydra.run.dir={tmp_path}", cwd=tmp_path,
    )  # fmt: skip
    log = output + "".join(path.read_text() for path in tmp_path.rglob("*.log"))
    assert commands.logged(log, "valid")[-1]["valid_num_updates"] == UPDATES
