"""The scripts for published corpora, on small stand-ins with the same names and layout, and other counts."""

import bz2
import gzip
import hashlib
import lzma
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import scripts
from fairseq import options
from fairseq_cli import preprocess

from fairseq_expire.corpora import catalogue
from fairseq_expire.corpora.download import RemoteFile
from fairseq_expire.corpora.verify import restore
from fairseq_expire.tokenizers.manifest import read_manifest

EOS = 2


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """Serves the files in the folder ``remote``, and records the requests."""
    (tmp_path / "remote").mkdir()
    handler = partial(Handler, directory=tmp_path / "remote")
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    running.asked = []
    running.folder = tmp_path / "remote"
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()


def remote_file(server, name, content):
    (server.folder / name).parent.mkdir(parents=True, exist_ok=True)
    (server.folder / name).write_bytes(content)
    url = f"http://127.0.0.1:{server.server_port}/{name}"
    return RemoteFile(name=name, urls=(url,), size=len(content), sha256=hashlib.sha256(content).hexdigest())


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path.read_bytes()


def run(module, *arguments):
    module.main([str(argument) for argument in arguments])


def fails(capsys, module, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(module, *arguments)
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == "" and err.count("\n") == 1
    return err


def text_of(folder):
    return b"".join(b"".join(restore(folder, split=split)) for split in read_manifest(folder).splits)


WIKI = ("<page>\n  <title>A &amp; b</title>\n" + "text \u20ac\n\n" * 3).encode() * 100
WIKI = WIKI[: len(WIKI) // 20 * 20]


@pytest.fixture
def enwik8(tmp_path, server, monkeypatch):
    module = scripts.load("enwik8")
    archive = zipped(tmp_path / "zip", {"../evil": b"x", "enwik8": WIKI})
    monkeypatch.setattr(module, "ENWIK8_ZIP", remote_file(server, "enwik8.zip", archive))
    monkeypatch.setattr(module, "ENWIK8", remote_file(server, "enwik8", WIKI))
    return module


def test_enwik8_from_the_network_to_verified_data(tmp_path, server, enwik8, capsys):
    run(enwik8, "--dest", tmp_path / "bin")
    assert capsys.readouterr().out.splitlines()[-1] == "enwik8, checked by hash"
    manifest = read_manifest(tmp_path / "bin")
    assert [counts.tokens for counts in manifest.splits.values()] == [
        len(WIKI) * 18 // 20,
        len(WIKI) // 20,
        len(WIKI) // 20,
    ]
    assert manifest.symbols == len(set(WIKI)) + 4 and manifest.options == {"newlines": "keep"}
    assert text_of(tmp_path / "bin") == WIKI
    run(enwik8, "--verify", tmp_path / "bin")
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == f"together: SHA-256 {hashlib.sha256(WIKI).hexdigest()}: the whole of enwik8"
    )
    assert server.asked == ["/enwik8.zip"]
    run(enwik8, "--dest", tmp_path / "bin", "--force")
    assert server.asked == ["/enwik8.zip"]
    # The archive also holds a file outside of its folder.
    assert sorted(path.name for path in (tmp_path / "downloads").rglob("*")) == ["enwik8", "enwik8", "enwik8.zip"]
    assert not list(tmp_path.rglob("evil"))
    # The extracted file differs from the one in the archive.
    (tmp_path / "downloads" / "enwik8" / "enwik8").write_bytes(WIKI[::-1])
    run(enwik8, "--dest", tmp_path / "bin", "--force")
    assert text_of(tmp_path / "bin") == WIKI


@pytest.mark.parametrize("newlines", ["keep", "drop", "eos"])
def test_newlines(tmp_path, enwik8, newlines):
    (tmp_path / "enwik8").write_bytes(WIKI)
    run(enwik8, "--dest", tmp_path / "bin", "--from", tmp_path / "enwik8", "--newlines", newlines)
    manifest = read_manifest(tmp_path / "bin")
    kept = WIKI if newlines == "keep" else WIKI.replace(b"\n", b"")
    assert manifest.symbols == 4 + len(set(kept))
    counts = manifest.splits["train"]
    train = WIKI[: len(WIKI) * 18 // 20]
    ids = np.fromfile(tmp_path / "bin" / "train.bin", dtype=np.uint16)
    assert counts.source_bytes == len(train) and len(ids) == counts.tokens
    assert counts.tokens == counts.text_bytes == len(train) - (train.count(b"\n") if newlines == "drop" else 0)
    assert (ids == EOS).sum() == (train.count(b"\n") if newlines == "eos" else 0)
    assert text_of(tmp_path / "bin") == (kept if newlines == "drop" else WIKI)
    assert manifest.options == {"newlines": newlines}
    run(enwik8, "--verify", tmp_path / "bin")


def test_enwik8_from_a_local_file_is_checked_too(tmp_path, enwik8, server, capsys):
    dest = tmp_path / "bin"
    (tmp_path / "excerpt").write_bytes(WIKI[:1000])
    assert "excerpt: 1000 bytes, expected" in fails(capsys, enwik8, "--dest", dest, "--from", tmp_path / "excerpt")
    (tmp_path / "other").write_bytes(WIKI[::-1])
    assert "other: SHA-256" in fails(capsys, enwik8, "--dest", dest, "--from", tmp_path / "other")
    zipped(tmp_path / "other.zip", {"enwik8": WIKI[::-1]})
    assert "other.zip: " in fails(capsys, enwik8, "--dest", dest, "--from", tmp_path / "other.zip")
    zipped(tmp_path / "empty.zip", {"README": b"x"})
    error = fails(capsys, enwik8, "--dest", dest, "--from", tmp_path / "empty.zip", "--no-verify")
    assert "There is no item named 'enwik8'" in error and "expected a zip archive with enwik8" in error
    assert "nowhere: expected a file, or a folder with enwik8 or enwik8.zip" in fails(
        capsys, enwik8, "--dest", dest, "--from", tmp_path / "nowhere"
    )
    assert "--no-verify is for --from" in fails(capsys, enwik8, "--dest", dest, "--no-verify")
    assert "--dest is missing" in fails(capsys, enwik8, "--from", tmp_path / "excerpt")
    assert not dest.exists() and not dest.with_name("bin.partial").exists()
    run(enwik8, "--dest", dest, "--from", tmp_path / "excerpt", "--no-verify")
    assert capsys.readouterr().out.splitlines()[-1] == "enwik8, not verified (--no-verify)"
    assert read_manifest(dest).source == {"corpus": "enwik8", "verified": False, "threshold": 0}
    assert "add --force" in fails(capsys, enwik8, "--dest", dest)
    run(enwik8, "--dest", dest, "--from", server.folder, "--force")
    assert text_of(dest) == WIKI and server.asked == []


def test_a_damaged_archive(tmp_path, enwik8, capsys):
    content = bytearray(zipped(tmp_path / "zip", {"enwik8": WIKI}))
    content[len(WIKI) // 2] ^= 1
    (tmp_path / "enwik8.zip").write_bytes(content)
    error = fails(capsys, enwik8, "--dest", tmp_path / "bin", "--from", tmp_path / "enwik8.zip", "--no-verify")
    assert "enwik8.zip: Bad CRC-32 for file 'enwik8'" in error
    assert not (tmp_path / "downloads" / "enwik8" / "enwik8").exists()


WORDS = {
    "train": " \n = A title = \n \n Some <unk> words , and \u20ac words @-@ here . \n" * 30,
    "valid": " \n = Another = \n Some words . \n",
    "test": " words here \n unseen \n",
}


@pytest.fixture
def wikitext103(tmp_path, server, monkeypatch):
    """The script with the counts of the small corpus instead of those of WikiText-103."""
    files = {split: remote_file(server, f"wiki.{split}.tokens", text.encode()) for split, text in WORDS.items()}
    archive = zipped(tmp_path / "zip", {f"wikitext-103/wiki.{split}.tokens": text for split, text in WORDS.items()})
    monkeypatch.setattr(catalogue, "WIKITEXT103_ZIP", remote_file(server, "wikitext-103-v1.zip", archive))
    monkeypatch.setattr(catalogue, "WIKITEXT103_CHECKED", (files["valid"], files["test"]))
    monkeypatch.setattr(catalogue, "WIKITEXT103_LINES", {split: text.count("\n") for split, text in WORDS.items()})
    tokens = {split: len(text.split()) + text.count("\n") for split, text in WORDS.items() if split != "train"}
    monkeypatch.setattr(catalogue, "WIKITEXT103_TOKENS", tokens)
    monkeypatch.setattr(catalogue, "WIKITEXT103_WORD_TYPES", len({*WORDS["train"].split(), "</s>"}))
    return scripts.load("wikitext103")


def test_wikitext103_is_what_fairseq_makes_of_it(tmp_path, server, wikitext103, capsys):
    run(wikitext103, "--dest", tmp_path / "bin")
    assert "WikiText-103, checked by hash" in capsys.readouterr().out
    assert server.asked == ["/wikitext-103-v1.zip"]
    for source in (server.folder, server.folder / "wikitext-103-v1.zip"):
        if source.is_file():
            (server.folder / "wiki.train.tokens").unlink()
        else:
            parser = options.get_preprocessing_parser()
            prefixes = [part for split in WORDS for part in (f"--{split}pref", f"{source}/wiki.{split}.tokens")]
            preprocess.main(parser.parse_args(["--only-source", "--destdir", str(tmp_path / "fairseq"), *prefixes]))
        capsys.readouterr()
        run(wikitext103, "--dest", tmp_path / "local", "--from", source, "--force")
        partly = "valid and test checked by hash, train by the number of its lines and words"
        assert f"WikiText-103, {'checked by hash' if source.is_file() else partly}" in capsys.readouterr().out
        for name in ("dict.txt", *(f"{split}.{end}" for split in WORDS for end in ("bin", "idx"))):
            expected = (tmp_path / "fairseq" / name).read_bytes()
            assert (tmp_path / "bin" / name).read_bytes() == expected == (tmp_path / "local" / name).read_bytes()
    run(wikitext103, "--verify", tmp_path / "bin")


def test_text_that_is_not_wikitext103(tmp_path, server, wikitext103, capsys):
    train = server.folder / "wiki.train.tokens"
    train.write_text(WORDS["train"] + "one more\n")
    error = fails(capsys, wikitext103, "--dest", tmp_path / "bin", "--from", server.folder)
    assert "this is not WikiText-103: lines of train 121, expected 120" in error and "--no-verify" in error
    assert not (tmp_path / "bin").exists() and not (tmp_path / "bin.partial").exists()
    (server.folder / "wiki.valid.tokens").write_text(WORDS["valid"] + "one more\n")
    assert "wiki.valid.tokens: " in fails(capsys, wikitext103, "--dest", tmp_path / "bin", "--from", server.folder)
    run(wikitext103, "--dest", tmp_path / "bin", "--from", server.folder, "--no-verify")
    assert read_manifest(tmp_path / "bin").splits["test"].unknown == 1
    (server.folder / "wiki.test.tokens").unlink()
    assert "with wiki.test.tokens in it" in fails(
        capsys, wikitext103, "--dest", tmp_path / "b", "--from", server.folder
    )


BOOKS = {
    "train": {"10": "First book.\r\nWith \u20ac.\n", "9": "Second\rbook" * 10, "91": ""},
    "validation": {"3": "Third.\n", "4": "Fourth."},
    "test": {"5": "Fifth \u03b1.\n"},
}


@pytest.fixture
def pg19(tmp_path, server, monkeypatch):
    module = scripts.load("pg19")
    books = {
        ours: [remote_file(server, f"{theirs}/{number}.txt", text.encode()) for number, text in BOOKS[theirs].items()]
        for ours, theirs in catalogue.PG19_SPLITS.items()
    }
    monkeypatch.setattr(module, "pg19_books", lambda: books)
    return module


def test_pg19_from_the_network_to_verified_data(tmp_path, server, pg19, capsys):
    run(pg19, "--dest", tmp_path / "bin")
    assert "PG-19, checked by hash" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "bin")
    assert manifest.append_eos and manifest.options == {"line_ends": "normalise"} and manifest.level == "chars"
    # The empty book makes no item.
    assert [counts.items for counts in manifest.splits.values()] == [2, 2, 1]
    train = "".join(BOOKS["train"].values()).replace("\r\n", "\n").replace("\r", "\n")
    assert b"".join(restore(tmp_path / "bin", split="train")).decode() == train
    assert manifest.splits["train"].tokens == len(train) + 2
    unseen = [sum(char not in train for char in "".join(BOOKS[split].values())) for split in ("validation", "test")]
    assert [manifest.splits[split].unknown for split in ("valid", "test")] == unseen and min(unseen) > 0
    assert {split: counts.words for split, counts in manifest.splits.items()} == catalogue.PG19_WORDS
    assert manifest.source["words"] == "as published"
    run(pg19, "--verify", tmp_path / "bin")
    assert sorted(server.asked) == sorted(f"/{split}/{n}.txt" for split, books in BOOKS.items() for n in books)
    server.asked.clear()
    (tmp_path / "downloads/pg19/validation/4.txt").unlink()
    run(pg19, "--dest", tmp_path / "bin", "--force", "--line-ends", "keep")
    assert server.asked == ["/validation/4.txt"]
    assert b"".join(restore(tmp_path / "bin", split="train")).decode() == "".join(BOOKS["train"].values())


def test_a_trial_with_few_books(tmp_path, server, pg19, capsys):
    (server.folder / "train/9.txt").unlink()
    assert "1 of 6 books are missing, train/9.txt" in fails(
        capsys, pg19, "--dest", tmp_path / "bin", "--from", server.folder
    )
    run(pg19, "--dest", tmp_path / "bin", "--from", server.folder, "--books", "1")
    manifest = read_manifest(tmp_path / "bin")
    assert [counts.items for counts in manifest.splits.values()] == [1, 1, 1]
    assert [counts.words for counts in manifest.splits.values()] == [4, 1, 2]
    assert manifest.source["words"] == "counted between white space" and manifest.source["verified"]
    assert server.asked == []


def test_books_that_are_not_those_of_pg19(tmp_path, server, pg19, capsys):
    (server.folder / "test/5.txt").write_text("Other.")
    assert "test/5.txt: 6 bytes, expected 10" in fails(
        capsys, pg19, "--dest", tmp_path / "bin", "--from", server.folder
    )
    run(pg19, "--dest", tmp_path / "bin", "--from", server.folder, "--no-verify")
    assert read_manifest(tmp_path / "bin").source["verified"] is False
    (server.folder / "test/5.txt").write_bytes(b"\xff")
    error = fails(capsys, pg19, "--dest", tmp_path / "b", "--from", server.folder, "--no-verify")
    assert "test/5.txt: not UTF-8 at byte 0" in error
    error = fails(capsys, pg19, "--dest", tmp_path / "b", "--from", server.folder / "train", "--no-verify")
    assert "train/train: there is no such file or folder" in error


def test_pg19_as_subwords(tmp_path, server, pg19, capsys):
    run(pg19, "--dest", tmp_path / "bin", "--from", server.folder, "--level", "subword", "--vocab-size", "277")
    manifest = read_manifest(tmp_path / "bin")
    assert manifest.symbols == 277 + 3 and manifest.splits["test"].unknown == 0
    assert b"".join(restore(tmp_path / "bin", split="test")).decode() == BOOKS["test"]["5"]
    assert (tmp_path / "bin" / "spm.model").exists()
    assert "--vocab-size is for --level subword" in fails(capsys, pg19, "--dest", tmp_path / "b", "--vocab-size", "9")


def test_the_catalogue_of_pg19():
    """The numbers published with the corpus."""
    books = catalogue.pg19_books()
    assert {split: len(files) for split, files in books.items()} == {"train": 28_602, "valid": 50, "test": 100}
    sizes = {split: sum(file.size for file in files) for split, files in books.items()}
    assert sizes == {"train": 11_677_531_154, "valid": 17_733_002, "test": 41_289_101}
    for split, folder in catalogue.PG19_SPLITS.items():
        names = [file.name for file in books[split]]
        assert (
            names == sorted(names)
            and len(set(names)) == len(names)
            and all(name.startswith(f"{folder}/") for name in names)
        )
    first = books["test"][0]
    assert first.urls == ("https://storage.googleapis.com/deepmind-gutenberg/test/10146.txt",) and first.size == 253_872
    assert first.sha256 == "f8dd4334fd8d422cd2f9153ffbff9b097611569592d7ca09fc6fe7881336d331"
    assert all(len(file.sha256) == 64 for files in books.values() for file in files)


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def same_data(one, two):
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    return all((one / path.name).read_bytes() == path.read_bytes() for path in two.iterdir())


@pytest.mark.parametrize("verify", [[], ["--no-verify"]], ids=["verified", "taken as it is"])
@pytest.mark.parametrize("suffix", PACK)
def test_corpora_from_compressed_files(tmp_path, server, enwik8, wikitext103, pg19, capsys, suffix, verify):
    packed = tmp_path / "packed"
    plain = {
        enwik8: {"enwik8": WIKI},
        wikitext103: {f"wiki.{split}.tokens": text.encode() for split, text in WORDS.items()},
        pg19: {
            f"{split}/{number}.txt": text.encode() for split, books in BOOKS.items() for number, text in books.items()
        },
    }
    for number, (module, files) in enumerate(plain.items()):
        for name, content in files.items():
            for folder, end, pack in (
                (tmp_path / f"plain{number}", "", bytes),
                (packed / str(number), suffix, PACK[suffix]),
            ):
                path = folder / (name + end)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(pack(content))
        one, two = tmp_path / f"one{number}", tmp_path / f"two{number}"
        run(module, "--dest", one, "--from", tmp_path / f"plain{number}", *verify)
        table = capsys.readouterr().out
        run(module, "--dest", two, "--from", packed / str(number), *verify)
        assert capsys.readouterr().out == table and same_data(one, two)
        run(module, "--verify", two)
        capsys.readouterr()
    assert server.asked == [] and not list(tmp_path.glob("*.partial"))
    # Given as a file, and with a file that is not the corpus.
    run(enwik8, "--dest", tmp_path / "again", "--from", packed / "0" / f"enwik8{suffix}")
    assert same_data(tmp_path / "one0", tmp_path / "again") or verify
    other = tmp_path / f"other{suffix}"
    other.write_bytes(PACK[suffix](WIKI[::-1]))
    assert f"other{suffix}: SHA-256 " in fails(capsys, enwik8, "--dest", tmp_path / "b", "--from", other)
    other.write_bytes(PACK[suffix](WIKI)[:-20])
    assert "damaged or cut short" in fails(capsys, enwik8, "--dest", tmp_path / "b", "--from", other, *verify)


def test_a_run_that_fails_leaves_nothing(tmp_path, server, enwik8, wikitext103, pg19, capsys, monkeypatch):
    (tmp_path / "page.zip").write_bytes(b"<html>")
    (tmp_path / "tape.tar").write_bytes(bytes(257) + b"ustar\0" + bytes(249))
    zipped(tmp_path / "other.zip", {"README": b"x"})
    damaged = bytearray(zipped(tmp_path / "damaged.zip", {"enwik8": WIKI, "wikitext-103/wiki.train.tokens": WIKI}))
    damaged[len(WIKI) // 2] ^= 1
    (tmp_path / "damaged.zip").write_bytes(damaged)
    (server.folder / "train" / "10.txt").unlink()
    (server.folder / "enwik8.zip").unlink()
    monkeypatch.setattr("fairseq_expire.corpora.download.BACK_OFF", ())
    before = sorted(tmp_path.rglob("*"))
    place = ["--dest", tmp_path / "deep" / "bin", "--downloads", tmp_path / "down" / "loads"]
    fails(capsys, enwik8, *place)
    assert "404" in fails(capsys, pg19, *place, "--books", "1", "--downloads", tmp_path / "other")
    kept = [tmp_path / "other", *sorted((tmp_path / "other").rglob("*"))]
    # Downloads are kept.
    assert [path.name for path in kept if path.is_file()] == ["5.txt", "3.txt"]
    for module in (enwik8, wikitext103):
        for name in ("page.zip", "tape.tar", "other.zip", "damaged.zip", "nowhere"):
            fails(capsys, module, *place, "--from", tmp_path / name)
            fails(capsys, module, *place, "--from", tmp_path / name, "--no-verify")
    assert "tar data, not text; unpack it" in fails(
        capsys, enwik8, *place, "--from", tmp_path / "tape.tar", "--no-verify"
    )
    fails(capsys, pg19, *place, "--from", tmp_path)
    fails(capsys, pg19, *place, "--from", tmp_path, "--no-verify")
    assert set(tmp_path.rglob("*")) - set(kept) == set(before)
