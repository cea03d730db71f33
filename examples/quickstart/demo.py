"""Trains a tiny Expire-Span model on the source of Python's standard library and compares it with compressors.

Then it trains three even smaller models on a task that shows the use of forgetting (forgetting.py).

    python examples/quickstart/demo.py [--text FOLDER_OR_FILE]

All results are kept in .demo/ in the repository, and steps with a result there are not repeated.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import forgetting
from context_model import ContextModel, xz_bits_per_byte
from pace import Pace
from progress import MEMORY_SIZE, Failed, Status, TrainingProgress, clock, read_json, run
from report import report

REPOSITORY = Path(__file__).resolve().parents[2]
PREPARE = [sys.executable, REPOSITORY / "data_prep" / "text.py"]
FORGETTING = [sys.executable, forgetting.__file__]
PLUGIN = ["--user-dir", REPOSITORY / "fairseq_expire", "--task", "memory_caching_lm", "--cpu"]

MAX_SPAN = 4096
TRAIN_SECONDS = 240

# A change here makes the next run start over. The number of updates depends on the machine: see pace.py.
TRAIN = f"""
--arch expire_span_lm_tiny --max-span {MAX_SPAN} --criterion expire_span_loss --expire-loss-weight 1e-4
--tokens-per-sample 128 --batch-size 8
--optimizer adam --adam-betas (0.9,0.98) --lr 0.004 --lr-scheduler cosine --warmup-updates 40 --clip-norm 0.3
--disable-validation --no-epoch-checkpoints --save-interval-updates 500 --keep-interval-updates 1
--log-format json --log-interval 10 --num-workers 0 --seed 1
""".split()

# Shares of train, valid and test; these suffice to tell models apart.
SHARES = "0.97,0.015,0.015"

# For less text a share of 1.5 % is too short to be cut into rows.
LEAST_BYTES = 100_000

# Rows side by side are many times as fast as one row. Each starts with an empty memory, which is no advantage for the
# model.
SCORE = ["--batch-size", "16", "--tokens-per-sample", "128"]

# Tests of the library, and packages that were installed beside it.
STDLIB_EXCLUDE = ["test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"]


@dataclass
class Corpus:
    """A text to train on.

    Args:
        title: its name on the screen.
        arguments: the arguments with which data_prep/text.py reads it.
        work: the folder for all results.
    """

    title: str
    arguments: list
    work: Path


def find_corpus(text=None):
    """Returns the standard library, or the user's folder or file. Raises ValueError if there is too little text."""
    if text is None:
        folder = sysconfig.get_path("stdlib")
        excluded = [word for name in STDLIB_EXCLUDE for word in ("--exclude", name)]
        return Corpus(
            f"Python's standard library, {folder}",
            ["--input", folder, "--include", "*.py", *excluded],
            REPOSITORY / ".demo" / "stdlib",
        )
    # Not every shell replaces the ~ that `make` passes on.
    path = Path(text).expanduser().resolve()
    if not text or not path.exists():
        raise ValueError(f"--text {text!r}: no such folder or file")
    files = path.rglob("*") if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files if file.is_file() and not hidden(file.relative_to(path)))
    if size < LEAST_BYTES:
        raise ValueError(
            f"--text {text!r} holds {size:,} bytes of text (hidden files left out), too few to learn from: "
            f"expected at least {LEAST_BYTES:,}"
        )
    # To fairseq a colon separates two paths.
    name = re.sub(r"[^\w.-]", "_", path.name)
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    return Corpus(str(path), ["--input", path], REPOSITORY / ".demo" / f"{name}-{digest}")


def hidden(path):
    """Returns True if data_prep/text.py skips a file with this path below a folder."""
    return any(part.startswith(".") for part in path.parts)


def tool(name):
    """Returns the path of a command of fairseq, beside the Python that runs this."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise ValueError(
            f"there is no {name} beside {sys.executable}: run `make demo`, or the Python that fairseq is installed for"
        )
    return path


def once(path, step, status):
    """Returns the result of `step(folder, status)`, which is computed only if the JSON file `path` does not exist."""
    if path.exists():
        status.say("kept from an earlier run")
    else:
        keep(path, step(path.parent, status))
    return json.loads(path.read_text())


def keep(path, result):
    """Writes a result to a JSON file, which appears when it is complete."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1))
    part.replace(path)


def prepare(corpus, status):
    """Makes the data-bin, and restores from it the bytes that the model reads, for the baselines."""
    work = corpus.work
    data = work / "data-bin"
    if not data.exists():
        options = ["--level", "bytes", "--split", SHARES, "--dest", data]
        run([*PREPARE, *options, *corpus.arguments], work / "prepare.log", status.say)
    for split in ("train", "test"):
        if not (work / split).exists():
            restore(data, split, work / split)
    sizes = [(work / split).stat().st_size for split in ("train", "test")]
    status.say("{:,} bytes to train on, {:,} to test on".format(*sizes))


def restore(data, split, path):
    """Writes the bytes of a split of the data-bin to a file."""
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        done = subprocess.run([*PREPARE, "--restore", data, split], stdout=file, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise Failed(f"data_prep/text.py could not restore {split} from {data}\n{done.stderr}")
    part.replace(path)


def baselines(work, status):
    """Returns the bits per byte of each baseline."""
    status.say("order-2 context model")
    with open(work / "train", "rb") as train, open(work / "test", "rb") as test:
        order_2 = ContextModel(train).bits_per_byte(test)
    status.say(f"order-2 context model {order_2:.3f} bits per byte, xz -9e: takes up to a minute")
    train, test = (work / "train").read_bytes(), (work / "test").read_bytes()
    alone, after = xz_bits_per_byte(test), xz_bits_per_byte(test, train)
    status.say(
        f"order-2 context model {order_2:.3f} bits per byte, xz -9e {alone:.3f}, after the training text {after:.3f}"
    )
    return {"order_2": order_2, "xz_alone": alone, "xz_after_training_text": after}


def forget_other_settings(work):
    """Removes the results of other settings, so that the report never mixes two."""
    settings, now = work / "settings.json", [SHARES, STDLIB_EXCLUDE, TRAIN, TRAIN_SECONDS, SCORE]
    if settings.exists() and json.loads(settings.read_text()) != now:
        print("The settings have changed since the last run: starting over.")
        shutil.rmtree(work)
        work.mkdir()
    keep(settings, now)


def train(work, status):
    """Trains in legs (see pace.py); a leg that is interrupted continues from the last checkpoint."""
    path = work / "pace.json"
    pace = Pace.of(json.loads(path.read_text())) if path.exists() else Pace(TRAIN_SECONDS, cores=Pace.cores_here())
    while leg := pace.next_leg():
        progress = TrainingProgress(leg.max_update, TRAIN_SECONDS, pace.updates, pace.trained)
        status.say(progress.last)

        def show(line, progress=progress):
            if text := progress.line(line):
                status.say(text)

        command = [tool("fairseq-train"), work / "data-bin", *PLUGIN, *TRAIN, "--save-dir", work / "checkpoints"]
        command += ["--max-update", leg.max_update]
        if leg.until is not None:
            command += ["--stop-time-hours", leg.until / 3600]
        run(command, work / "train.log", show, mode="a", threads=leg.threads)
        pace.measured(leg, updates=progress.updates, trained=progress.trained, rate=progress.rate)
        keep(path, pace.to_dict())
    status.say(f"{pace.updates} updates in {clock(pace.trained)}, with threads: {pace.threads}")
    return {"updates": pace.updates, "seconds": pace.trained, "threads": pace.threads}


def score(work, status):
    """Returns the bits per byte of fairseq-eval-lm and the mean memory size of fairseq-validate on the test text."""
    common = [work / "data-bin", *PLUGIN, *SCORE, "--path", work / "checkpoints" / "checkpoint_last.pt"]
    found = {}

    def read_score(line):
        if match := re.search(r"Evaluated ([\d,]+) tokens", line):
            found["tokens"] = int(match[1].replace(",", ""))
        if match := re.search(r"Loss \(base 2\): ([\d.]+)", line):
            found["bits_per_byte"] = float(match[1])

    def read_memory(line):
        tag, stats = read_json(line)
        if tag == "test":
            found["memory_size"] = float(stats[f"test_{MEMORY_SIZE}"])

    status.say("bits per byte")
    run([tool("fairseq-eval-lm"), *common, "--gen-subset", "test"], work / "score.log", read_score)
    status.say("memory size")
    json_log = ["--valid-subset", "test", "--log-format", "json"]
    run([tool("fairseq-validate"), *common, *json_log], work / "validate.log", read_memory)

    missing = {"tokens", "bits_per_byte", "memory_size"} - found.keys()
    if missing:
        raise Failed(f"no {' and no '.join(sorted(missing))} in {work / 'score.log'} and {work / 'validate.log'}")
    length = (work / "test").stat().st_size
    if found["tokens"] != length:
        raise Failed(
            f"fairseq-eval-lm scored {found['tokens']:,} tokens, but the test text has {length:,} bytes; see "
            f"{work / 'score.log'}"
        )
    status.say(f"{found['bits_per_byte']:.3f} bits per byte, {found['memory_size']:.0f} memories")
    return found


def forget(work, status):
    """Returns the results of forgetting.py, which do not depend on the text."""
    path = work / "forgetting.part"
    run([*FORGETTING, "--json", path], work / "forgetting.log", status.say)
    results = json.loads(path.read_text())
    path.unlink()
    return results


def demo(corpus):
    """Does all steps and prints the report."""
    work = corpus.work
    work.mkdir(parents=True, exist_ok=True)
    print(f"1/6 text: {corpus.title}\n    results in {work}: delete it to start over", flush=True)

    forget_other_settings(work)
    with Status("2/6 prepare") as status:
        prepare(corpus, status)

    with Status("3/6 baselines") as status:
        compared = once(work / "baselines.json", baselines, status)

    with Status(f"4/6 train, about {TRAIN_SECONDS // 60} minutes") as status:
        once(work / "finished.json", train, status)

    with Status("5/6 score") as status:
        scored = once(work / "score.json", score, status)

    # Another version of the task has another file.
    version = hashlib.sha256(Path(forgetting.__file__).read_bytes()).hexdigest()[:8]
    with Status("6/6 remember and forget, about 3 minutes") as status:
        forgot = once(work / f"forgetting-{version}.json", forget, status)

    print(
        "\n"
        + report(compared, scored, MAX_SPAN, forgot, work / "data-bin", work / "checkpoints" / "checkpoint_last.pt")
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", metavar="FOLDER_OR_FILE", help="train on this instead of Python's standard library")
    try:
        corpus = find_corpus(parser.parse_args(arguments).text)
        tool("fairseq-train")
    except ValueError as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 2
    try:
        demo(corpus)
    except Failed as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to go on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    # A SIGTERM ends the training, too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
