"""Wrong uses of the scripts of data_prep; those of text.py's options are in tests/data_prep/test_text_cli.py."""

import bz2
import gzip
import lzma

import sentencepiece

from wrong_uses import Use
from wrong_uses.data import copied, counts, cut_to, dictionary, labelled, manifest, no_text, one_token, removed

TEXT = "--level bytes --dest made --train text.txt"


def with_text(folder):
    (folder / "text.txt").write_text("Some text.\n")


def then(damage):
    """Writes a text, and damages the data."""

    def both(folder):
        with_text(folder)
        damage(folder)

    return both


def no_zip(folder):
    (folder / "enwik8.zip").write_text("<html>404</html>")


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def model(**options):
    """Makes a foreign SentencePiece model, and a dictionary of its pieces."""

    def learn(folder):
        with_text(folder)
        (folder / "theirs").mkdir()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["some text and more of it"] * 9),
            model_prefix="theirs/spm",
            minloglevel=3,
            **options,
        )
        made = sentencepiece.SentencePieceProcessor(model_file="theirs/spm.model")
        names = [made.id_to_piece(index) for index in range(3, len(made))]
        (folder / "theirs" / "dict.txt").write_text("".join(f"{name} 1\n" for name in names))

    return learn


# The beginnings of a zip and of a tar archive.
ZIP, TAR = b"PK\3\4\x14\0", bytes(257) + b"ustar\0" + bytes(249)
SUBWORDS = "--level subword --dest made --test text.txt --dict theirs/dict.txt"

USES = [
    Use("verify no folder", "text.py", "--verify nowhere", "nowhere: no manifest.json there; give a folder that"),
    Use(
        "verify without a manifest",
        "text.py",
        "--verify data",
        "data: no manifest.json there",
        removed("manifest.json"),
    ),
    Use(
        "verify tokens cut short",
        "text.py",
        "--verify data",
        "train.bin: .*; make the data again",
        cut_to(999, "train.bin"),
    ),
    Use(
        "verify another token", "text.py", "--verify data", "train.bin: the text in it has the SHA-256", one_token(7, 9)
    ),
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
        "dict.txt: not the file that manifest.json names",
        dictionary(lambda lines: lines[::-1], manifest=True),
    ),
    Use(
        "verify a wrong count",
        "text.py",
        "--verify data",
        "train.bin: .*; make the data again",
        counts("train", tokens=17),
    ),
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
        "verify data with labels as text",
        "text.py",
        "--verify data",
        r"the data beside it is labelled \(copy\), expected text; .*with the script that made it",
        labelled,
    ),
    Use(
        "verify text as data with labels",
        "copy_task.py",
        "--verify data",
        "data/manifest.json: the data beside it is text, expected labelled data; .*text.py",
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
    Use(
        "a dictionary with half a line",
        "text.py",
        TEXT + " --dict data/dict.txt",
        "not a dictionary of bytes .line 87 is '7', expected a symbol, a space and a count",
        then(dictionary(lambda lines: [*lines, "7"])),
    ),
    Use(
        "a dictionary that is not there",
        "text.py",
        TEXT + " --dict theirs/dict.txt",
        "--dict theirs/dict.txt: there is no such file",
        with_text,
    ),
    Use(
        "a model of pieces that normalises",
        "text.py",
        SUBWORDS,
        "spm.model does not keep a text as it is .*; give a model",
        model(vocab_size=273, byte_fallback=True),
    ),
    Use(
        "a model of pieces without bytes",
        "text.py",
        SUBWORDS,
        "has no pieces for bytes, .*; give a model",
        model(vocab_size=17),
    ),
    Use("a zip archive", "text.py", TEXT, "text.txt: zip data, not text; unpack it and give", write("text.txt", ZIP)),
    Use(
        "an archive in a compressed file",
        "text.py",
        TEXT.replace("bytes", "words"),
        "text.txt: xz data of tar data, not text; unpack it",
        write("text.txt", lzma.compress(TAR)),
    ),
    Use(
        "a compressed file cut short",
        "text.py",
        TEXT,
        r"text.txt: gzip data that is damaged or cut short \(.*\); get the file again",
        write("text.txt", gzip.compress(b"text" * 99)[:-9]),
    ),
    Use(
        "a picture",
        "text.py",
        TEXT.replace("bytes", "chars"),
        "text.txt: not UTF-8 at byte 0 .*; convert it, leave it out, or take bytes for symbols .*--level bytes",
        write("text.txt", b"\x89PNG\r\n\x1a\n"),
    ),
    Use(
        "text in UTF-16",
        "text.py",
        TEXT.replace("bytes", "words"),
        "text.txt: binary, or not UTF-8: it has a zero at byte 1; convert it",
        write("text.txt", "text".encode("utf-16-le")),
    ),
    Use(
        "enwik8 from another archive",
        "enwik8.py",
        "--dest made --from enwik8.tar --no-verify",
        "enwik8.tar: tar data, not text; unpack it",
        write("enwik8.tar", TAR),
    ),
    Use(
        "enwik8 from another compressed file",
        "enwik8.py",
        "--dest made --from enwik8.bz2",
        "enwik8.bz2: 4 bytes, expected 100,?000,?000",
        write("enwik8.bz2", bz2.compress(b"text")),
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
