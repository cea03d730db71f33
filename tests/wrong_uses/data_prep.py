"""Wrong uses of the scripts of data_prep; those of text.py's options are in tests/data_prep/test_text_cli.py."""

from wrong_uses import Use
from wrong_uses.data import copied, counts, cut_to, dictionary, manifest, no_text, one_token, removed

TEXT = "--level bytes --dest made --train text.txt"


def with_text(folder):
    (folder / "text.txt").write_text("Some text.\n")


def then(damage):
    """With a text, and damage to the data."""

    def both(folder):
        with_text(folder)
        damage(folder)

    return both


def no_zip(folder):
    (folder / "enwik8.zip").write_text("<html>404</html>")


USES = [
    Use("verify no folder", "text.py", "--verify nowhere", "nowhere: no manifest.json there; give a folder that"),
    Use("verify without a manifest", "text.py", "--verify data", "data: no manifest.json there", removed("manifest.json")),
    Use(
        "verify tokens cut short",
        "text.py",
        "--verify data",
        "train.bin: .*; make the data again",
        cut_to(999, "train.bin"),
    ),
    Use("verify another token", "text.py", "--verify data", "train.bin: the text in it has the SHA-256", one_token(7, 9)),
    Use(
        "verify another index",
        "text.py",
        "--verify data",
        "test.bin: shorter than its index says; make the data again",
        copied("train.idx", "test.idx"),
    ),
    Use(
        "verify another dictionary",
        "text.py",
        "--verify data",
        "dict.txt: not the file the data was written with",
        dictionary(lambda lines: lines[::-1], manifest=True),
    ),
    Use("verify a wrong count", "text.py", "--verify data", "train.bin: .*; make the data again", counts("train", tokens=17)),
    Use(
        "verify a negative count",
        "text.py",
        "--verify data",
        "train.bin: .*; make the data again",
        counts("train", tokens=-1),
    ),
    Use(
        "verify another level",
        "text.py",
        "--verify data",
        "level is 'letters', expected one of",
        manifest(lambda content: content.update(level="letters")),
    ),
    Use(
        "restore from half a manifest",
        "text.py",
        "--restore data test",
        "manifest.json: not JSON .*; restore the file",
        cut_to(99, "manifest.json"),
    ),
    Use(
        "a dictionary with a symbol twice",
        "text.py",
        TEXT + " --dict data/dict.txt",
        "data/dict.txt: not a dictionary of bytes .*there already",
        then(dictionary(lambda lines: [*lines, lines[3]])),
    ),
    Use(
        "a dictionary that is no text to prepare with",
        "text.py",
        TEXT + " --dict data/dict.txt",
        "data/dict.txt: not a dictionary of bytes",
        then(no_text),
    ),
    Use(
        "a dictionary of bytes for pieces",
        "text.py",
        "--level subword --dest made --test text.txt --dict data/dict.txt",
        "data/spm.model|dict.txt",
        with_text,
    ),
    Use(
        "enwik8 from a web page",
        "enwik8.py",
        "--dest made --from enwik8.zip",
        "enwik8.zip: 16 bytes, expected 100,?000,?000",
        no_zip,
    ),
    Use("other newlines", "enwik8.py", "--dest made --newlines crlf", "argument --newlines: invalid choice: 'crlf'"),
    Use("no books", "pg19.py", "--dest made --books 0", "argument --books: 0 is not a number above 0"),
    Use("pieces of characters", "pg19.py", "--dest made --vocab-size 9", "--vocab-size is for --level subword"),
    Use(
        "WikiText-103 from nowhere",
        "wikitext103.py",
        "--dest made --from nowhere",
        "nowhere: expected a file, or a folder with",
    ),
]
