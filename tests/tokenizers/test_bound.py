"""The codec against the data that the binarizer writes, and against itself for text that comes in parts."""

import inspect
import sys
import textwrap

import commands
import pytest
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_expire.corpora.binarize import Job, binarize
from fairseq_expire.corpora.sources import find_files
from fairseq_expire.tokenizers.bound import BoundTokenizer
from fairseq_expire.tokenizers.dictionary import PlainDictionary
from fairseq_expire.tokenizers.registry import make_level
from fairseq_expire.tokenizers.symbols import byte_symbol

TRAIN = inspect.getsource(textwrap) + "é ü 中文 \U0001f600\n" * 9
VALID = "The  text é\r\nnever\rseen\r\n: \U0001f600\U0001f601 中\tx\n\n <s> <unk> <pad>\u2581 \u2581\u2581end\u2581 <pad> end\n"
KINDS = {
    "bytes": ("bytes", {}),
    "bytes-eos": ("bytes", {"newlines": "eos"}),
    "bytes-drop": ("bytes", {"newlines": "drop"}),
    "chars": ("chars", {}),
    "chars-normalise": ("chars", {"line_ends": "normalise"}),
    "words": ("words", {}),
    "subword": ("subword", {"vocab_size": 600}),
    "subword-normalise": ("subword", {"vocab_size": 600, "line_ends": "normalise"}),
}


@pytest.fixture(scope="module", params=KINDS)
def data(request, tmp_path_factory):
    """A data-bin whose valid split holds VALID."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "train").write_bytes(TRAIN.encode())
    (folder / "valid").write_bytes(VALID.encode())
    level, options = KINDS[request.param]
    (folder / "bin").mkdir()
    splits = {split: find_files([folder / split]) for split in ("train", "valid")}
    binarize(Job(splits=splits, level=make_level(level, options)), folder / "bin", workers=1)
    return folder / "bin"


def stored(folder):
    items = MMapIndexedDataset(str(folder / "valid"))
    return [index for n in range(len(items)) for index in items[n].tolist()]


def expected_text(codec):
    """VALID, but for what the level leaves out or normalises, and for what its dictionary lacks."""
    text = VALID
    if getattr(codec.level, "line_ends", None) == "normalise" or codec.level_name == "words":
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if codec.level_name == "subword":
        return text
    if codec.level_name == "words":
        known = set(codec.dictionary.indices) - {"<pad>"}
        words = [[word if word in known else "<unk>" for word in line.split()] for line in text.split("\n")]
        return "\n".join(" ".join(line) for line in words)
    if codec.level_name == "chars":
        known = {text for text in TRAIN}
        return "".join(char if char in known else "\ufffd" for char in text)
    if codec.level.newlines == "drop":
        text = text.replace("\n", "")
    known = set(TRAIN.encode()) | {10}
    return bytes(byte if byte in known else ord("?") for byte in text.encode()).decode("utf-8", "replace")


def test_ids_are_those_of_the_data_and_come_back_as_text(data):
    codec = BoundTokenizer.of(data)
    assert codec.symbols == Dictionary.load(str(data / "dict.txt")).symbols
    assert (codec.eos, codec.pad, codec.encode("")) == (2, 1, [])
    ids = codec.encode(VALID)
    assert ids == stored(data) == codec.encode(VALID.encode())
    assert codec.decode(ids) == expected_text(codec)


def test_text_that_comes_in_parts(data):
    codec = BoundTokenizer.of(data)

    # The more random the cuts, the more often they are in characters and line ends.
    @settings(max_examples=40, deadline=None)
    @given(st.randoms(use_true_random=False))
    def check(random):
        encoder, ids, text = codec.stream_encoder(), [], VALID.encode() + "中".encode()
        while text:
            length = random.randint(1, 8)
            ids += encoder.feed(text[:length])
            text = text[length:]
        ids += encoder.flush()
        assert ids == codec.encode(VALID + "中") and encoder.held == b""

    check()


def test_ids_that_come_one_by_one(data):
    codec = BoundTokenizer.of(data)
    decoder, ids = codec.stream_decoder(), codec.encode(VALID)
    pieces = [decoder.feed(index) for index in ids]
    assert "".join(pieces) + decoder.flush() == codec.decode(ids)
    # As soon as it is there: the text of any beginning, but for a space that follows or a character without its end.
    for stop in range(0, len(ids), 7):
        assert codec.decode(ids[:stop]).rstrip("\ufffd").startswith("".join(pieces[:stop]).rstrip("\ufffd"))


def test_an_unfinished_character_is_held_back_and_given_up_at_the_end():
    codec = BoundTokenizer(PlainDictionary([byte_symbol(byte) for byte in range(256)]), make_level("bytes", {}))
    decoder = codec.stream_decoder()
    first, *others = codec.encode("é")
    assert decoder.feed(first) == "" and [decoder.feed(index) for index in others] == ["é"]
    assert decoder.feed(first) == "" and decoder.flush() == "\ufffd"


def test_words_of_fairseq_preprocess(tmp_path):
    (tmp_path / "text").write_text(TRAIN)
    commands.run(
        commands.tool("fairseq-preprocess"), "--only-source", "--trainpref", tmp_path / "text", "--destdir", tmp_path / "bin",
        "--workers", "1",
    )  # fmt: skip
    codec = BoundTokenizer.of(tmp_path / "bin")
    items = MMapIndexedDataset(str(tmp_path / "bin" / "train"))
    assert codec.level_name == "words" and codec.symbols == Dictionary.load(str(tmp_path / "bin" / "dict.txt")).symbols
    assert codec.encode(TRAIN) == [index for n in range(len(items)) for index in items[n].tolist()]
    assert codec.encode("def wrap") == [codec.dictionary.index("def"), codec.dictionary.index("wrap")]


def test_what_cannot_be_read(data, tmp_path):
    codec = BoundTokenizer.of(data)
    with pytest.raises(ValueError, match="numbers from 0 to .*, got 0 to 100000"):
        codec.decode([0, 100000])
    if codec.level_name != "bytes":
        with pytest.raises(ValueError, match="the text given: not UTF-8 at byte 3"):
            codec.encode(b"abc\xff def\n")
    with pytest.raises(FileNotFoundError, match="no dict.txt in .*: expected the folder of a data-bin"):
        BoundTokenizer.of(tmp_path)
    for name in ("manifest.json", "spm.model"):
        if (data / name).exists():
            (tmp_path / name).write_bytes((data / name).read_bytes())
    (tmp_path / "dict.txt").write_bytes((data / "dict.txt").read_bytes() + b"more 1\n")
    with pytest.raises(ValueError, match="dict.txt: not the file that manifest.json names"):
        BoundTokenizer.of(tmp_path)


@pytest.mark.parametrize(
    "lines", ["a 1\nb 2\n", "a 1\r\nx\x85y\u2028z 2\nc 0", "a 1\na 2 #fairseq:overwrite\nb 3\n", ""]
)
def test_dictionaries_as_fairseq_reads_them(tmp_path, lines):
    (tmp_path / "dict.txt").write_bytes(lines.encode())
    theirs, ours = Dictionary.load(str(tmp_path / "dict.txt")), PlainDictionary.load(tmp_path / "dict.txt")
    assert ours.symbols == theirs.symbols and ours.indices == theirs.indices and len(ours) == len(theirs)
    assert (ours.bos(), ours.pad(), ours.eos(), ours.unk()) == (theirs.bos(), theirs.pad(), theirs.eos(), theirs.unk())
    assert (ours.nspecial, ours.unk_word, ours.index("no such")) == (theirs.nspecial, theirs.unk_word, theirs.unk())


@pytest.mark.parametrize(
    "lines, words", [("a\n", "line 1 is 'a'"), ("a 1\n</s> 2\n", "line 2: '</s>'"), ("a x\n", "'a x'")]
)
def test_damaged_dictionaries(tmp_path, lines, words):
    (tmp_path / "dict.txt").write_text(lines)
    with pytest.raises(ValueError, match=words):
        PlainDictionary.load(tmp_path / "dict.txt")


def test_without_fairseq(data):
    script = "import sys; sys.modules['fairseq'] = None; from fairseq_expire.tokenizers.bound import BoundTokenizer; "
    script += "codec = BoundTokenizer.of(sys.argv[1]); print(codec.encode('The text\\n'))"
    expected = BoundTokenizer.of(data).encode("The text\n")
    assert commands.run(sys.executable, "-c", script, data).splitlines()[-1] == str(expected)
