"""Runs that end early: data is complete or not there, and the next run makes what an uninterrupted run makes."""

import errno
import functools
import os
import random
import resource
import signal
import time

import killable
import pytest
import scripts

from fairseq_expire.corpora.binarize import Job, binarize
from fairseq_expire.corpora.sources import find_files
from fairseq_expire.files import new_folder
from fairseq_expire.tokenizers.bound import make_tokenizer
from fairseq_expire.tokenizers.chunks import FileSlice
from fairseq_expire.tokenizers.manifest import FILE_NAME

OPTIONS = {"bytes": {}, "chars": {"line_ends": "normalise"}, "words": {}, "subword": {"vocab_size": 275}}


@pytest.fixture
def text(tmp_path):
    """Three files of awkward lines. Train lacks some symbols of the third."""
    folder = tmp_path / "text"
    folder.mkdir()
    lines = [f"{i % 7} \u20ac\U0001f600\r\n{'word ' * (i % 13)}\n{'x' * (i % 5)}  end" for i in range(60)]
    (folder / "a").write_text(" ".join(lines), newline="")
    (folder / "b").write_text("\n".join(lines[:20]), newline="")
    (folder / "unseen").write_text("words \u03b1 that train \u03b2 lacks\n" * 40)
    return folder


def job(text, name, **kwargs):
    splits = {"train": find_files([text / "a", text / "b"]), "valid": find_files([text / "unseen"])}
    tokenizer = make_tokenizer(name, OPTIONS[name])
    return Job(splits=splits, tokenizer=tokenizer, chunk_bytes=100, append_eos=name != "words", **kwargs)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def make(dest, the_job, *, force=False, **kwargs):
    with new_folder(dest, mark=FILE_NAME, force=force) as folder:
        binarize(the_job, folder, **kwargs)
    return contents(dest)


@pytest.mark.parametrize("item_per_file", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_output_does_not_depend_on_the_number_of_workers(tmp_path, text, name, item_per_file):
    the_job = job(text, name, item_per_file=item_per_file)
    one = make(tmp_path / "one", the_job, workers=1)
    splits = [f"{split}.{suffix}" for split in ("train", "valid") for suffix in ("bin", "idx")]
    assert set(one) - {"spm.model"} == {"dict.txt", "manifest.json", *splits}
    assert make(tmp_path / "three", the_job, workers=3) == one


@pytest.mark.parametrize("name", OPTIONS)
def test_a_kill_after_any_number_of_chunks(tmp_path, text, name, long):
    the_job, dest, partial = job(text, name), tmp_path / "dest", tmp_path / "dest.partial"
    whole = make(tmp_path / "whole", the_job, workers=1)
    old = make(dest, Job(splits=the_job.splits, tokenizer=make_tokenizer("bytes", {})), workers=1)

    def run(chunks):
        def on_progress(doing, num_bytes):
            nonlocal chunks
            chunks -= 1
            if chunks < 0:
                killable.kill_this_process()

        make(dest, the_job, force=True, workers=1, on_progress=on_progress)

    left, chunks = set(), 0
    while killable.run(functools.partial(run, chunks)):
        assert contents(dest) == old and not (partial / FILE_NAME).exists()
        left |= {path.name for path in partial.iterdir()}
        # Every number takes a minute.
        chunks += 1 if long else 11
    assert left >= {"dict.txt", "train.bin", "train.idx", "valid.bin", "valid.idx"}
    assert contents(dest) == whole and not partial.exists()


def test_killing_the_script(tmp_path, long):
    """SIGKILL at random moments, with worker processes to leave behind."""
    source = tmp_path / "text"
    source.write_text(
        "".join(f"{random.Random(i).random()} {i % 99} the same words again and again\n" for i in range(12_000))
    )
    options = ["--level", "words", "--train", str(source), "--valid", str(source), "--workers", "2", "--dest"]
    dest, partial, main = tmp_path / "dest", tmp_path / "dest.partial", scripts.load("text").main
    started = time.monotonic()
    main([*options, str(tmp_path / "whole")])
    seconds = time.monotonic() - started
    kills = 0
    for attempt in range(30 if long else 8):
        child = killable.start(lambda: main([*options, str(dest), "--force"]))
        time.sleep(random.Random(attempt).uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        kills += killable.was_killed(child)
        # The workers hold the lock until they notice.
        time.sleep(0.1)
        assert not dest.exists() or contents(dest) == contents(tmp_path / "whole")
    assert kills >= 2
    main([*options, str(dest), "--force"])
    assert contents(dest) == contents(tmp_path / "whole") and not partial.exists()


def test_an_unfinished_run_of_another_job_leaves_nothing(tmp_path, text):
    def stop(doing, num_bytes):
        if doing == "train":
            killable.kill_this_process()

    assert killable.run(lambda: make(tmp_path / "dest", job(text, "subword"), workers=1, on_progress=stop))
    assert (tmp_path / "dest.partial" / "spm.model").exists()
    assert make(tmp_path / "dest", job(text, "words")) == make(tmp_path / "whole", job(text, "words"))


def test_a_full_disk(tmp_path, text):
    """Here the limit on the size of files: no other error of this kind can be caused without being root."""
    (text / "a").write_bytes(b"abc\n" * 20_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"train.bin") as caught:
            make(tmp_path / "dest", job(text, "bytes"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(tmp_path / "dest.partial" / "train.bin")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text"]
    # With room, the same command makes the data.
    assert make(tmp_path / "dest", job(text, "bytes")) == make(tmp_path / "whole", job(text, "bytes"))


def test_a_file_that_cannot_be_read(tmp_path, text):
    """A folder in the place of a file, which not even root can read."""
    slices = [FileSlice(text, 0, 10)]
    with pytest.raises(OSError, match=f"{text}"):
        make(tmp_path / "bin", Job(splits={"train": slices}, tokenizer=make_tokenizer("chars", {})))
