import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import scripts
from fairseq_expire.data.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "data_prep" / "text.py"

main = scripts.load("text").main


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """The current folder, with some text in it."""
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "code/a.py": "print('a')\n",
        "code/lib/b.py": "# \u20ac\n",
        "code/lib/c.txt": "no code\n",
        "code/.git/d.py": "hidden\n",
        "valid.txt": "print a\n",
    }.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)
    Path("latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    Path("cut_off.txt").write_bytes("caf\xe9".encode()[:-1])
    Path("empty.txt").touch()
    Path("hollow").mkdir()
    Path("hollow/empty.txt").touch()
    return tmp_path


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
    assert sorted(os.listdir("out/data")) == ["dict.txt", "manifest.json", "train.bin", "train.idx", "valid.bin", "valid.idx"]
    run("--restore out/data train")
    assert capfdbinary.readouterr() == ("print('a')\n# \u20ac\n".encode(), b"")


def test_one_text_is_divided(corpus, capfdbinary):
    Path("code/z.py").write_text("print('\u20ac # a')\n" * 4)
    run("--level chars --dest data --input code --split 0.5,0.25,0.25 --include z.py --append-eos")
    manifest = read_manifest("data")
    # Half of 68 bytes is the end of the second line, three quarters that of the third.
    assert [counts.source_bytes for counts in manifest.splits.values()] == [34, 17, 17]
    assert [counts.tokens for counts in manifest.splits.values()] == [30, 15, 16]
    assert manifest.level == "chars"
    assert manifest.source["split"] == "0.5,0.25,0.25" and manifest.source["include"] == ["z.py"]
    capfdbinary.readouterr()
    for split in manifest.splits:
        run(f"--restore data {split}")
    assert capfdbinary.readouterr().out == Path("code/z.py").read_bytes()


def test_force_makes_the_data_anew(corpus, capsys):
    run("--level words --dest data --train code --threshold 2")
    with pytest.raises(SystemExit):
        run("--level bytes --dest data --train valid.txt")
    assert read_manifest("data").level == "words"
    run("--level bytes --dest data --train valid.txt --force")
    assert read_manifest("data").level == "bytes"


MAKE = "--level chars --dest data "
ERRORS = {
    "--train missing.txt": "missing.txt: there is no such file",
    "--train code missing.txt": "missing.txt: there is no such file",
    "--train code --include *.rs": "code: no file in it matches",
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


def test_a_full_disk_is_named_and_what_to_do(corpus, capsys):
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
    error = capsys.readouterr().err
    assert error == f"text.py: error: {corpus}/data.partial/train.bin: File too large; make room, and the same command goes on from here\n"
    run("--level bytes --dest data --train big.txt")
    assert read_manifest("data").splits["train"].tokens == 100_000


def test_the_script_alone(corpus):
    """From outside: the exit status, and nothing on stderr beside the error, which fairseq's import would like to be."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, SCRIPT, *"--level bytes --dest data --train missing.txt".split()]
    failed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("text.py: error: missing.txt: ") and failed.stderr.count("\n") == 1


def test_another_datas_dictionary(corpus, capsys):
    run("--level bytes --dest first --train code")
    run("--level bytes --dest second --dict first/dict.txt --test valid.txt code/a.py")
    assert Path("second/dict.txt").read_bytes() == Path("first/dict.txt").read_bytes()
    assert not Path("second/train.bin").exists()
    manifest = read_manifest("second")
    assert manifest.splits["test"].unknown == 0 and manifest.dictionary_sha256 == read_manifest("first").dictionary_sha256


@pytest.mark.parametrize(
    "line, words",
    [
        ("--level bytes --dest out --dict first/dict.txt", "--train is missing"),
        ("--level bytes --dest out --dict valid.txt --test valid.txt", "valid.txt: not a dictionary of bytes"),
        ("--level bytes --dest out --dict absent.txt --test valid.txt", "absent.txt"),
        ("--level words --dest out --dict first/dict.txt --test valid.txt --threshold 2", "--threshold"),
    ],
)
def test_a_dictionary_that_does_not_serve(corpus, capsys, line, words):
    run("--level words --dest first --train valid.txt")
    with pytest.raises(SystemExit) as ended:
        run(line)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_dictionary_of_words_is_none_of_bytes(corpus, capsys):
    run("--level words --dest first --train valid.txt")
    with pytest.raises(SystemExit):
        run("--level bytes --dest out --dict first/dict.txt --test valid.txt")
    assert "not a dictionary of bytes" in capsys.readouterr().err
