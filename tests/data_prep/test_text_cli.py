"""The script text.py: its output, its errors, and what is left after them."""

import builtins
import bz2
import errno
import gzip
import lzma
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scripts

from fairseq_expire.corpora import compressed, split_files
from fairseq_expire.corpora.verify import restore
from fairseq_expire.tokenizers import chunks
from fairseq_expire.tokenizers.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "data_prep" / "text.py"

main = scripts.load("text").main


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder with texts and other files."""
    folder = tmp_path_factory.mktemp("texts")
    for name, content in {
        "code/a.py": "print('a')\n",
        "code/lib/b.py": "# \u20ac\n",
        "code/lib/c.txt": "no code\n",
        "code/.git/d.py": "hidden\n",
        "valid.txt": "print a\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    (folder / "cut_off.txt").write_bytes("caf\xe9".encode()[:-1])
    (folder / "empty.txt").touch()
    (folder / "hollow").mkdir()
    (folder / "hollow/empty.txt").touch()
    (folder / "packed").mkdir()
    (folder / "packed/photo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (folder / "packed/wide.txt").write_bytes("wide".encode("utf-16-le"))
    with zipfile.ZipFile(folder / "packed/texts.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    (folder / "packed/empty.gz").write_bytes(gzip.compress(b""))
    (folder / "packed/dict.gz").write_bytes(gzip.compress(b"a 1\n"))
    (folder / "twins").mkdir()
    (folder / "twins/b.txt").write_text("text")
    (folder / "twins/b.txt.gz").write_bytes(gzip.compress(b"text"))
    (folder / "packed/cut.gz").write_bytes(gzip.compress(b"text" * 99)[:-9])
    # Damaged or not UTF-8, but not at the beginning.
    noise = random.Random(0).randbytes(300_000).hex().encode()
    (folder / "packed/late.xz").write_bytes(lzma.compress(noise)[:-60])
    (folder / "packed/latin.bz2").write_bytes(bz2.compress(b"text" * 50_000 + b"\xe9 text"))
    return folder


@pytest.fixture
def corpus(texts, tmp_path, monkeypatch):
    """The current folder, with copies of all these files."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(texts, tmp_path, dirs_exist_ok=True)


def run(line):
    main(line.split())


def test_one_command_makes_data_and_another_restores_it(corpus, capfdbinary):
    run("--level bytes --dest out/data --train code --valid valid.txt --include *.py --include *.md")
    table = capfdbinary.readouterr().out.decode().splitlines()
    assert [line.split() for line in table] == [
        ["split", "files", "bytes", "characters", "tokens", "unknown"],
        ["train", "2", "17", "15", "17", "0"],
        ["valid", "1", "8", "8", "8", "0"],
        ["19", "symbols", "in", "the", "dictionary"],
    ]
    assert sorted(os.listdir("out")) == ["data"]
    assert sorted(os.listdir("out/data")) == [
        "dict.txt",
        "manifest.json",
        "train.bin",
        "train.idx",
        "valid.bin",
        "valid.idx",
    ]
    run("--restore out/data train")
    assert capfdbinary.readouterr() == ("print('a')\n# \u20ac\n".encode(), b"")


def test_one_text_is_divided(corpus, capfdbinary):
    Path("code/z.py").write_text("print('\u20ac # a')\n" * 4)
    run("--level chars --dest data --input code --split 0.5,0.25,0.25 --include z.py --append-eos")
    manifest = read_manifest("data")
    # The cuts, at half and three quarters of 68 bytes, are at the ends of the second and the third line.
    assert [counts.source_bytes for counts in manifest.splits.values()] == [34, 17, 17]
    assert [counts.tokens for counts in manifest.splits.values()] == [30, 15, 16]
    assert manifest.level == "chars"
    assert manifest.source["split"] == "0.5,0.25,0.25" and manifest.source["include"] == ["z.py"]
    capfdbinary.readouterr()
    for split in manifest.splits:
        run(f"--restore data {split}")
    assert capfdbinary.readouterr().out == Path("code/z.py").read_bytes()


def test_force_replaces_the_data(corpus, capsys):
    run("--level words --dest data --train code --threshold 2")
    with pytest.raises(SystemExit):
        run("--level bytes --dest data --train valid.txt")
    assert read_manifest("data").level == "words"
    run("--level bytes --dest data --train valid.txt --force")
    assert read_manifest("data").level == "bytes"


MAKE = "--level chars --dest data "
ERRORS = {
    "--train missing.txt": "missing.txt: there is no such file",
    "--train missing.txt --dest deep/er/data": "missing.txt: there is no such file",
    "--train missing.txt --dest over/it --force": "missing.txt: there is no such file",
    "--train code missing.txt": "missing.txt: there is no such file",
    "--train code --include *.rs": "code: no file in it matches (looked for --include *.rs); name a folder with text",
    "--train code --include *.py --exclude a.py --exclude lib": "(looked for --include *.py --exclude a.py "
    "--exclude lib)",
    "--train packed --exclude cut --exclude late --exclude latin": "packed/photo.png: not UTF-8 at byte 0 "
    "(invalid start byte); convert it, leave it out, or take",
    "--train packed --include *.zip --include *.txt": "packed/texts.zip: zip data, not text; unpack it and "
    "give what is in it, or leave it out",
    "--train packed --exclude *.gz --exclude *.bz2 --exclude *.xz --level bytes": "packed/texts.zip: zip data, "
    "not text; unpack it",
    "--train packed/photo.png --level words": "packed/photo.png: not UTF-8 at byte 0",
    "--train packed/photo.png --level subword": "packed/photo.png: not UTF-8 at byte 0",
    "--train packed/wide.txt": "packed/wide.txt: binary, or not UTF-8: it has a zero at byte 1",
    "--train packed/cut.gz": "packed/cut.gz: gzip data that is damaged or cut short",
    "--train packed/cut.gz --level bytes": "packed/cut.gz: gzip data that is damaged or cut short",
    "--train packed/late.xz": "packed/late.xz: xz data that is damaged or cut short",
    "--train packed/late.xz --level bytes": "packed/late.xz: xz data that is damaged or cut short",
    "--train code --test packed/late.xz --level words": "packed/late.xz: xz data that is damaged or cut short",
    "--train twins": "twins/b.txt.gz: b.txt beside it would be read, too, and is the same text by its name; "
    "leave one of them out",
    "--train code --dict code": "--dict code: a folder; give the dict.txt in it",
    "--train code --dict packed/dict.gz": "--dict packed/dict.gz: gzip data; unpack it and give the dict.txt in it",
    "--train packed/empty.gz": "packed/empty.gz: the file is empty; leave it out",
    "--train packed/latin.bz2": "packed/latin.bz2: not UTF-8 at byte 200000 (",
    "--train packed/latin.bz2 --level words": "packed/latin.bz2: not UTF-8 at byte 200000 (",
    "--train code --dict absent.txt": "--dict absent.txt: there is no such file",
    "--train hollow": "hollow: its 1 matching files are all empty",
    "--train empty.txt": "empty.txt: the file is empty",
    "--train code --valid empty.txt": "empty.txt: the file is empty",
    "--train latin.txt": "latin.txt: not UTF-8 at byte 3 (invalid continuation byte)",
    "--train code --test cut_off.txt": "cut_off.txt: not UTF-8 at byte 3 (unexpected end of data)",
    "--train latin.txt --level words": "latin.txt: not UTF-8 at byte 3",
    "--train code --input code --split 0.5,0.5": "--input and --train",
    "--valid code --input code --split 0.5,0.5": "--input and --train",
    "--input code": "--input and --split go together",
    "--train code --split 0.5,0.5": "--input and --split go together",
    "--valid code": "--train is missing",
    "": "--train is missing",
    "--input code --split 0.5,0.4": "--split 0.5,0.4: expected two or three positive numbers",
    "--input code --split 1": "--split 1: expected two or three positive numbers",
    "--input valid.txt --split 0.9999,0.0001 --level words": "--split: valid would be empty",
    "--train code --level words --append-eos": "--append-eos is not for words",
    "--train code --threshold 3": "--threshold is for words",
    "--train code --dest valid.txt/data": "valid.txt/data: cannot be written",
    "--train code --dest valid.txt": "valid.txt: there already, and not data",
    "--train code --dest done": "done: there already, with data in it; add --force",
    "--train missing.txt --dest done": "done: there already, with data in it; add --force",
    "--train code --dest code/data": "--dest code/data: lies in code, which is read",
    "--train code --vocab-size 9": "--vocab-size is for learning a model of --level subword",
    "--train code --level subword": "--vocab-size 32000: SentencePiece cannot make such a model of this text",
    "--train code --workers 0": "argument --workers: 0 is not a number above 0",
    "--train code --level letters": "invalid choice: 'letters'",
    "--train code --threshold x": "invalid int value",
    "--train code --surprise": "unrecognized arguments",
    "--restore valid.txt train": "valid.txt",
    "--verify hollow": "hollow: no manifest.json there",
    "--restore hollow train": "hollow: no manifest.json there",
    "--restore done test": "no split test; it has train",
}


@pytest.mark.parametrize("options", ERRORS)
def test_errors_take_one_line_and_leave_nothing(corpus, capsys, options):
    if "done" in options:
        run("--level bytes --dest done --train valid.txt")
    capsys.readouterr()
    before = sorted(corpus.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        run(MAKE + options)
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == "" and err.startswith("text.py: error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert ERRORS[options] in err
    assert sorted(corpus.rglob("*")) == before


@pytest.mark.parametrize("given, missing", [("--level bytes", "--dest"), ("--dest data", "--level"), ("", "--level")])
def test_level_and_dest_are_asked_for(corpus, capsys, given, missing):
    with pytest.raises(SystemExit):
        run(f"{given} --train code")
    assert f"error: {missing} is missing" in capsys.readouterr().err


def test_data_is_verified(corpus, capsys):
    run("--level words --dest data --train code --valid valid.txt")
    capsys.readouterr()
    run("--verify data")
    out, err = capsys.readouterr()
    assert [line.split(":")[0] for line in out.splitlines()] == ["train", "valid"] and err == ""
    Path("data/train.bin").write_bytes(Path("data/train.bin").read_bytes()[:-2] + b"\5\0")
    with pytest.raises(SystemExit):
        run("--verify data")
    assert capsys.readouterr().err.startswith("text.py: error: ")


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("level", ["bytes", "chars", "words", "subword"])
@pytest.mark.parametrize(
    "how",
    ["--train {0}/a {0}/b --valid {0}/c", "--train {0} --exclude c --valid {0}/c", "--input {0} --split 0.6,0.2,0.2"],
)
def test_compressed_text_gives_the_same_data(corpus, capsys, level, how):
    texts = {
        name: "".join(f"{name}{number} \u20ac\u2581 \r\nmore\n" for number in range(500)).encode() for name in "abc"
    }
    for name, (suffix, pack) in zip("abc", PACK.items()):
        for folder in ("plain", "packed_texts", "named"):
            Path(folder).mkdir(exist_ok=True)
        Path("plain", name).write_bytes(texts[name])
        # Files with and without a suffix.
        Path("packed_texts", name).write_bytes(pack(texts[name]))
        Path("named", name + suffix).write_bytes(pack(texts[name]))
    Path("named/hollow.gz").write_bytes(gzip.compress(b""))
    options = f"--level {level}" + (" --vocab-size 300" if level == "subword" else "")
    run(f"{options} --dest one {how.format('plain')}")
    table = capsys.readouterr().out
    run(f"{options} --dest two {how.format('packed_texts')}")
    assert capsys.readouterr().out == table
    assert sorted(os.listdir("one")) == sorted(os.listdir("two")) and not Path("two.partial").exists()
    for name in os.listdir("one"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes(), name
    if "/" not in how.partition("--valid")[2]:
        run(f"{options} --dest three {how.format('named')}")
        assert Path("one/train.bin").read_bytes() == Path("three/train.bin").read_bytes()
    run("--verify two")
    # No text is missing.
    source_bytes = sum(counts.source_bytes for counts in read_manifest("two").splits.values())
    assert source_bytes == sum(map(len, texts.values()))


def test_patterns_match_names_with_and_without_the_suffix(corpus):
    Path("mixed").mkdir()
    for name in ("a.txt", "b.md"):
        Path("mixed", name).write_text(name)
        for suffix, pack in PACK.items():
            # A file and its compressed form in one folder are refused.
            other = f"{name[0]}-{suffix[1:]}{name[1:]}{suffix}"
            Path("mixed", other).write_bytes(pack(f"{name}{suffix}".encode()))

    def text(options):
        run(f"--level bytes --dest made --force --train mixed {options}")
        return b"".join(restore("made", split="train")).decode()

    assert text("--include *.txt") == "a.txt.bz2a.txt.gza.txt.xza.txt"
    assert text("--include *.txt --exclude *.gz") == "a.txt.bz2a.txt.xza.txt"
    assert text("--exclude *.md") == "a.txt.bz2a.txt.gza.txt.xza.txt"
    assert text("--include *.xz") == "a.txt.xzb.md.xz"
    assert text("--exclude *.txt --exclude *.bz2 --exclude *.xz") == "b.md.gzb.md"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("moment", ["unpacking", "binarizing"])
def test_a_stopped_run_leaves_nothing_and_can_be_repeated(corpus, capsys, monkeypatch, stop, moment):
    for name in "ab":
        Path(f"{name}.gz").write_bytes(gzip.compress(f"text {name}\n".encode() * 1000))
    command = "--level words --dest made --train a.gz b.gz"
    before = sorted(corpus.rglob("*"))
    original = compressed.content_of

    def content(path, **options):
        yield from original(path, **options)
        # Files are unpacked without options, and only looked at with some.
        if path.name == "b.gz" and not options:
            raise stop

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        if moment == "unpacking":
            patch.setattr(compressed, "content_of", content)
        else:
            error = stop if stop is KeyboardInterrupt else OSError(*stop.args, "train.bin")
            patch.setattr(split_files.SplitWriter, "add", raising(error))
        run(command)
    assert "run the same command again" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(corpus.rglob("*")) == before
    run(command)
    assert sorted(os.listdir("made")) == ["dict.txt", "manifest.json", "train.bin", "train.idx"]
    assert b"".join(restore("made", split="train")) == b"text a\n" * 1000 + b"text b\n" * 1000


def raising(error):
    def function(*arguments, **options):
        raise error

    return function


@pytest.mark.parametrize("level", ["bytes", "words", "subword"])
@pytest.mark.parametrize("moment", ["found", "read", "gone"])
@pytest.mark.parametrize("killed", [False, True], ids=["nothing before", "after a killed run"])
def test_a_file_that_cannot_be_read_leaves_nothing(corpus, capsys, monkeypatch, level, moment, killed):
    """The errors are simulated, since root, who may run the tests, can read every file."""
    everything = sorted(corpus.rglob("*"))
    if killed:
        Path("made.partial/.unfinished").mkdir(parents=True)
        Path("made.partial/train.bin").write_text("unfinished")
    real = builtins.open

    def no_access(path, *arguments, **options):
        if str(path).endswith("valid.txt"):
            if moment == "gone":
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        # When files are found, or later.
        patch.setattr(builtins if moment == "found" else chunks, "open", no_access, raising=False)
        size = " --vocab-size 274" if level == "subword" else ""
        run(f"--level {level} --dest made --train code --test valid.txt{size}")
    error = capsys.readouterr().err
    words = (
        "No such file or directory"
        if moment == "gone"
        else "Permission denied; change its permissions, or leave it out"
    )
    # On a slow machine lines of progress come first.
    assert error.splitlines()[-1] == f"text.py: error: valid.txt: {words}"
    assert sorted(corpus.rglob("*")) == everything


def test_a_folder_of_another_program_is_left_alone(corpus, capsys):
    Path("made.partial").mkdir()
    Path("made.partial/thesis.tex").write_text("x")
    Path("a.gz").write_bytes(gzip.compress(b"text"))
    everything = sorted(corpus.rglob("*"))
    with pytest.raises(SystemExit):
        run("--level bytes --dest made --train a.gz")
    assert "made.partial: not empty, and no unfinished data" in capsys.readouterr().err
    assert sorted(corpus.rglob("*")) == everything


def test_padding_as_a_word_is_counted_as_unknown(corpus, capsys):
    Path("pads.txt").write_text("a <pad> b <pad>\n<unk> <s> </s>\n")
    for level, unknown in {"words": 2, "chars": 0, "bytes": 0}.items():
        run(f"--level {level} --dest {level} --train pads.txt")
        assert capsys.readouterr().out.splitlines()[1].split()[-1] == str(unknown)
        run(f"--verify {level}")
        capsys.readouterr()
    assert not set(np.fromfile("words/train.bin", dtype=np.uint16).tolist()) & {1}
    with pytest.raises(SystemExit):
        run("--restore words train")
    assert "2 of the 9 symbols of train are <unk>" in capsys.readouterr().err


def test_a_full_disk_gives_an_error_with_the_file_and_advice(corpus, capsys):
    Path("big.txt").write_text("word " * 20_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(SystemExit):
            run("--level bytes --dest data --train big.txt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    message = "File too large; make room, and run the same command again"
    assert capsys.readouterr().err == f"text.py: error: {corpus}/data.partial/train.bin: {message}\n"
    run("--level bytes --dest data --train big.txt")
    assert read_manifest("data").splits["train"].tokens == 100_000


def test_the_script_in_a_process_of_its_own(corpus):
    """The exit status, and nothing on stderr but the error: fairseq's import writes there, too."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, SCRIPT, *["--level", "bytes", "--dest", "data", "--train", "missing.txt"]]
    failed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("text.py: error: missing.txt: ") and failed.stderr.count("\n") == 1


def test_the_dictionary_of_other_data(corpus, capsys):
    run("--level bytes --dest first --train code")
    run("--level bytes --dest second --dict first/dict.txt --test valid.txt code/a.py")
    assert Path("second/dict.txt").read_bytes() == Path("first/dict.txt").read_bytes()
    assert not Path("second/train.bin").exists()
    manifest = read_manifest("second")
    assert (
        manifest.splits["test"].unknown == 0 and manifest.dictionary_sha256 == read_manifest("first").dictionary_sha256
    )


@pytest.mark.parametrize(
    "line, words",
    [
        ("--level bytes --dest out --dict first/dict.txt", "--train is missing"),
        ("--level bytes --dest out --dict valid.txt --test valid.txt", "valid.txt: not a dictionary of bytes"),
        ("--level bytes --dest out --dict absent.txt --test valid.txt", "absent.txt"),
        ("--level words --dest out --dict first/dict.txt --test valid.txt --threshold 2", "--threshold"),
    ],
)
def test_dictionaries_that_cannot_be_used(corpus, capsys, line, words):
    run("--level words --dest first --train valid.txt")
    with pytest.raises(SystemExit) as ended:
        run(line)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_dictionary_of_words_is_refused_for_bytes(corpus, capsys):
    run("--level words --dest first --train valid.txt")
    with pytest.raises(SystemExit):
        run("--level bytes --dest out --dict first/dict.txt --test valid.txt")
    assert "not a dictionary of bytes" in capsys.readouterr().err
