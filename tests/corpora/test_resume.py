"""A run that is killed, and gone on with, gives the same bytes as one that is not."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fairseq_expire.corpora import split_writer
from fairseq_expire.corpora.binarize import Job, binarize
from fairseq_expire.corpora.sources import FileSlice, find_files
from fairseq_expire.corpora.verify import verify
from fairseq_expire.folders import new_folder
from fairseq_expire.tokenizers.registry import make_level

ROOT = Path(__file__).resolve().parents[2]
LEVELS = {"bytes": {}, "chars": {"line_ends": "normalise"}, "words": {}, "subword": {"vocab_size": 275}}


class Killed(BaseException):
    pass


@pytest.fixture
def text(tmp_path):
    """Awkward lines in two files, the second one starting in the middle of what the dictionary knows."""
    folder = tmp_path / "text"
    folder.mkdir()
    lines = [f"{i % 7} \u20ac\U0001f600\r\n{'word ' * (i % 13)}\n{'x' * (i % 5)}  end" for i in range(60)]
    (folder / "a").write_text(" ".join(lines), newline="")
    (folder / "b").write_text("\n".join(lines[:20]), newline="")
    (folder / "unseen").write_text("words \u03b1 that train \u03b2 lacks\n" * 5)
    return folder


def job(text, level, **kwargs):
    splits = {"train": find_files([text / "a", text / "b"]), "valid": find_files([text / "unseen"])}
    return Job(
        splits=splits, level=make_level(level, LEVELS[level]), unit_bytes=100, append_eos=level != "words", **kwargs
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".journal.json"}


def make(folder, job, **kwargs):
    folder.mkdir(exist_ok=True)
    binarize(job, folder, **kwargs)
    return contents(folder)


def killed_after(reports):
    def on_progress(doing, num_bytes):
        nonlocal reports
        reports -= 1
        if reports < 0:
            raise Killed

    return on_progress


@pytest.mark.parametrize("item_per_file", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_output_does_not_depend_on_workers_or_units_on_interruptions(tmp_path, text, level, item_per_file):
    the_job = job(text, level, item_per_file=item_per_file)
    whole = make(tmp_path / "whole", the_job, workers=1)
    assert set(whole) - {"spm.model"} == {
        "dict.txt",
        "manifest.json",
        *(f"{s}.{e}" for s in ("train", "valid") for e in ("bin", "idx")),
    }
    assert make(tmp_path / "three", the_job, workers=3) == whole
    # Killed again and again, after ever more steps, each a little further than the one before.
    folder, steps, runs = tmp_path / "killed", 1, 0
    while True:
        folder.mkdir(exist_ok=True)
        runs += 1
        try:
            binarize(the_job, folder, workers=1, save_seconds=0, on_progress=killed_after(3 + 3 * runs))
            break
        except Killed:
            assert "manifest.json" not in contents(folder)
    assert runs > 3
    assert contents(folder) == whole


def test_what_was_written_after_the_record_is_written_again(tmp_path, text):
    the_job = job(text, "words")
    whole = make(tmp_path / "whole", the_job)
    folder = tmp_path / "killed"
    folder.mkdir()
    units = len(the_job.units("train"))
    # Nothing of the second half is recorded: the clock stands still.
    for save_seconds, steps in ((0, units + units // 2), (3600, units // 4)):
        with pytest.raises(Killed):
            binarize(the_job, folder, workers=1, save_seconds=save_seconds, on_progress=killed_after(steps))
    with open(folder / "train.bin", "ab") as file:
        file.write(b"torn")
    assert make(folder, the_job) == whole


@pytest.mark.parametrize("damage", [lambda content: content[:-4], lambda content: b"\4\0\5\0" + content[4:]])
def test_what_a_disk_lost_is_written_again(tmp_path, text, damage):
    whole = make(tmp_path / "whole", job(text, "chars"))
    folder = tmp_path / "killed"
    folder.mkdir()
    with pytest.raises(Killed):
        binarize(
            job(text, "chars"),
            folder,
            workers=1,
            save_seconds=0,
            on_progress=killed_after(len(job(text, "chars").units("train")) + 20),
        )
    unfinished = folder / "train.bin"
    assert unfinished.stat().st_size > 100
    unfinished.write_bytes(damage(unfinished.read_bytes()))
    assert make(folder, job(text, "chars")) == whole


def test_another_job_starts_from_nothing(tmp_path, text):
    folder = tmp_path / "bin"
    folder.mkdir()
    with pytest.raises(Killed):
        binarize(job(text, "subword"), folder, workers=1, save_seconds=0, on_progress=killed_after(30))
    assert (folder / "spm.model").exists()
    assert make(folder, job(text, "words")) == make(tmp_path / "whole", job(text, "words"))
    # The same command on text that has changed is another job, too.
    with new_folder(tmp_path / "dest") as partial, pytest.raises(Killed):
        binarize(job(text, "bytes"), partial, workers=1, save_seconds=0, on_progress=killed_after(30))
    (text / "a").write_text("other text")
    assert make(tmp_path / "dest", job(text, "bytes")) == make(tmp_path / "other", job(text, "bytes"))


def test_a_kill_in_the_middle_of_the_first_record(tmp_path, text):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / ".journal.json.unfinished").write_text('{"plan"')
    whole = make(tmp_path / "whole", job(text, "bytes"))
    assert make(tmp_path / "bin", job(text, "bytes")) == whole


def test_a_folder_of_something_else_is_left_alone(tmp_path, text):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "thesis.tex").write_text("x")
    with pytest.raises(RuntimeError, match="bin: not empty, and no unfinished data"):
        binarize(job(text, "bytes"), tmp_path / "bin")
    assert (tmp_path / "bin" / "thesis.tex").exists()


def test_killing_the_real_command(tmp_path):
    """SIGKILL at random moments; words, so that there are processes to leave behind."""
    source = tmp_path / "text"
    source.write_text(
        "".join(f"{random.Random(i).random()} {i % 99} the same words again and again\n" for i in range(12_000))
    )
    script = (
        "import sys; from fairseq_expire.data import binarize, journal; "
        "journal.Journal.due = lambda self: True; sys.path.insert(0, sys.argv.pop(1)); import text; text.main()"
    )
    options = ["--level", "words", "--train", source, "--valid", source, "--workers", "2", "--dest"]
    command = [sys.executable, "-c", script, ROOT / "data_prep", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, tmp_path / "whole"], env=environment, check=True, capture_output=True)
    dest, partial = tmp_path / "dest", tmp_path / "dest.partial"
    kills = 0
    for attempt in range(30):
        process = subprocess.Popen([*command, dest], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while not partial.exists() and process.poll() is None:
            time.sleep(0.01)
        try:
            process.wait(timeout=random.Random(attempt).uniform(0, attempt))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            if dest.exists():  # killed after its last act
                break
    assert kills >= 2 and dest.exists(), process.stderr.read()
    assert contents(dest) == contents(tmp_path / "whole") and not partial.exists()


# a disk that is full, files that cannot be read -------------------------------------------------------------------------


def test_a_full_disk(tmp_path, text, monkeypatch):
    """The limit on the size of files, which is the one error of this kind that a test can have without being root."""
    (text / "a").write_bytes(b"abc\n" * 20_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match="train.bin") as caught, new_folder(tmp_path / "dest") as folder:
            binarize(job(text, "bytes"), folder, save_seconds=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(tmp_path / "dest.partial" / "train.bin")
    assert not (tmp_path / "dest").exists()
    # With room, the same command goes on.
    with new_folder(tmp_path / "dest") as folder:
        binarize(job(text, "bytes"), folder)
    assert contents(tmp_path / "dest") == make(tmp_path / "whole", job(text, "bytes"))


def test_a_file_that_may_not_be_read(tmp_path, text):
    """A folder in the place of a file is one that not even root can read."""
    pieces = [FileSlice(text, 0, 10)]
    with pytest.raises(OSError, match=f"{text}"):
        make(tmp_path / "bin", Job(splits={"train": pieces}, level=make_level("chars", {})))


# reading back -----------------------------------------------------------------------------------------------------------


def quiet(split, num_bytes):
    pass


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "damage, message",
    [
        ("flip", "train.bin: the text in it has the SHA-256 .* and the text it was made of had|does not end in </s>"),
        ("cut", "train.bin: shorter than its index says"),
        ("longer", "train.bin: longer than its index says"),
        ("index", "train.idx: not the index of this data"),
        ("pointers", "train.idx: CRC-32"),
        ("borders", "train.idx: CRC-32|does not end in </s>|the text in it has the SHA-256"),
        ("dictionary", "dict.txt: not the file the data was written with"),
    ],
)
def test_damage_is_found(tmp_path, text, level, damage, message):
    folder = tmp_path / "bin"
    make(folder, job(text, level))
    assert len(list(verify(folder, on_progress=quiet))) == 2
    files = {**dict.fromkeys(("index", "pointers", "borders"), "train.idx"), "dictionary": "dict.txt"}
    path = folder / files.get(damage, "train.bin")
    content = bytearray(path.read_bytes())
    if damage == "flip":
        # Another symbol of the dictionary.
        content[200] = 5 if content[200] != 5 else 6
        assert content[201] == 0
    elif damage == "index":
        content[18] ^= 1
    elif damage == "pointers":
        del content[-8:]
    elif damage == "borders":
        # The first item a token longer, the second one shorter.
        sizes = np.frombuffer(content, np.int32, count=2, offset=26).copy() + [1, -1]
        content[26:34] = sizes.astype(np.int32).tobytes()
    elif damage == "cut":
        del content[-2:]
    else:
        content += b"\n\n"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(verify(folder, on_progress=quiet))


def test_an_item_beyond_what_the_format_holds(tmp_path):
    writer = split_writer.SplitWriter(
        tmp_path, "train", dtype=np.uint16, written=split_writer.Written(open_tokens=2**31)
    )
    with pytest.raises(ValueError, match="an item of 2147483649 tokens"):
        writer.add(split_writer.Encoded(ids=np.array([4], np.uint16), ends=np.array([1]), unknown=0, text=b"x"))
