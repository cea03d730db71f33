"""Text in memory gets the ids that binarizing writes, at once or in parts, and comes back from them."""

import inspect
import sys
import textwrap

import commands
import pytest
from fairseq import options
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset
from fairseq_cli import preprocess
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_expire.corpora.binarize import Job, binarize
from fairseq_expire.corpora.sources import find_files
from fairseq_expire.tokenizers.bound import BoundTokenizer, make_tokenizer
from fairseq_expire.tokenizers.bytes_and_chars import byte_symbol
from fairseq_expire.tokenizers.dictionary import PlainDictionary

TRAIN = inspect.getsource(textwrap) + "é ü 中文 \U0001f600\n" * 9
VALID = (
    "The  text é\r\nnever\rseen\r\n: \U0001f600\U0001f601 中\tx\n\n "
    "<s> <unk> <pad>\u2581 \u2581\u2581end\u2581 <pad> end\n"
)
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


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A data-bin of each kind, whose valid split holds VALID."""
    made = {}
    for kind, (name, its_options) in KINDS.items():
        folder = tmp_path_factory.mktemp(kind)
        (folder / "train").write_bytes(TRAIN.encode())
        (folder / "valid").write_bytes(VALID.encode())
        (folder / "bin").mkdir()
        splits = {split: find_files([folder / split]) for split in ("train", "valid")}
        binarize(Job(splits=splits, tokenizer=make_tokenizer(name, its_options)), folder / "bin", workers=1)
        made[kind] = folder / "bin"
    return made


@pytest.fixture(params=KINDS)
def data(request, folders):
    return folders[request.param]


def stored(folder):
    items = MMapIndexedDataset(str(folder / "valid"))
    return [index for n in range(len(items)) for index in items[n].tolist()]


def expected_text(tokenizer):
    """VALID without what the tokenizer leaves out or normalises, and without what its dictionary lacks."""
    text = VALID
    if getattr(tokenizer.tokenizer, "line_ends", None) == "normalise" or tokenizer.level == "words":
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if tokenizer.level == "subword":
        return text
    if tokenizer.level == "words":
        known = set(tokenizer.dictionary.indices) - {"<pad>"}
        words = [[word if word in known else "<unk>" for word in line.split()] for line in text.split("\n")]
        return "\n".join(" ".join(line) for line in words)
    if tokenizer.level == "chars":
        known = set(TRAIN)
        return "".join(char if char in known else "\ufffd" for char in text)
    if tokenizer.tokenizer.newlines == "drop":
        text = text.replace("\n", "")
    known = set(TRAIN.encode()) | {10}
    return bytes(byte if byte in known else ord("?") for byte in text.encode()).decode("utf-8", "replace")


def test_ids_are_those_of_the_data_and_come_back_as_text(data):
    tokenizer = BoundTokenizer.load(data)
    assert tokenizer.symbols == Dictionary.load(str(data / "dict.txt")).symbols
    assert (tokenizer.eos, tokenizer.pad, tokenizer.encode("")) == (2, 1, [])
    ids = tokenizer.encode(VALID)
    assert ids == stored(data) == tokenizer.encode(VALID.encode())
    assert tokenizer.decode(ids) == expected_text(tokenizer)


def test_text_that_comes_in_parts_gets_the_same_ids(data):
    tokenizer = BoundTokenizer.load(data)

    # Short random parts cut characters and line ends often.
    @settings(max_examples=40, deadline=None)
    @given(st.randoms(use_true_random=False))
    def check(random):
        encoder, ids, text = tokenizer.stream_encoder(), [], VALID.encode() + "中".encode()
        while text:
            length = random.randint(1, 8)
            ids += encoder.feed(text[:length])
            text = text[length:]
        ids += encoder.flush()
        assert ids == tokenizer.encode(VALID + "中") and encoder.pending == b""

    check()


def test_ids_that_come_one_by_one_give_the_same_text(data):
    tokenizer = BoundTokenizer.load(data)
    decoder, ids = tokenizer.stream_decoder(), tokenizer.encode(VALID)
    parts = [decoder.feed(index) for index in ids]
    assert "".join(parts) + decoder.flush() == tokenizer.decode(ids)
    # Text comes as early as possible: at once, except a space or an incomplete character at the end.
    for stop in range(0, len(ids), 7):
        assert tokenizer.decode(ids[:stop]).rstrip("\ufffd").startswith("".join(parts[:stop]).rstrip("\ufffd"))


def test_an_incomplete_character_is_held_back_and_replaced_at_the_end():
    tokenizer = BoundTokenizer(PlainDictionary([byte_symbol(byte) for byte in range(256)]), make_tokenizer("bytes", {}))
    decoder = tokenizer.stream_decoder()
    first, *others = tokenizer.encode("é")
    assert decoder.feed(first) == "" and [decoder.feed(index) for index in others] == ["é"]
    assert decoder.feed(first) == "" and decoder.flush() == "\ufffd"


def test_words_of_fairseq_preprocess(tmp_path):
    (tmp_path / "text").write_text(TRAIN)
    parser = options.get_preprocessing_parser()
    files = ["--only-source", "--trainpref", str(tmp_path / "text"), "--destdir", str(tmp_path / "bin")]
    preprocess.main(parser.parse_args([*files, "--workers", "1"]))
    tokenizer = BoundTokenizer.load(tmp_path / "bin")
    items = MMapIndexedDataset(str(tmp_path / "bin" / "train"))
    assert (
        tokenizer.level == "words" and tokenizer.symbols == Dictionary.load(str(tmp_path / "bin" / "dict.txt")).symbols
    )
    assert tokenizer.encode(TRAIN) == [index for n in range(len(items)) for index in items[n].tolist()]
    assert tokenizer.encode("def wrap") == [tokenizer.dictionary.index("def"), tokenizer.dictionary.index("wrap")]


def test_data_that_cannot_be_read(data, tmp_path):
    tokenizer = BoundTokenizer.load(data)
    with pytest.raises(ValueError, match=r"numbers from 0 to .*, got 0 to 100000"):
        tokenizer.decode([0, 100000])
    if tokenizer.level != "bytes":
        with pytest.raises(ValueError, match="the text given: not UTF-8 at byte 3"):
            tokenizer.encode(b"abc\xff def\n")
    with pytest.raises(FileNotFoundError, match=r"no dict.txt in .*: expected the folder of a data-bin"):
        BoundTokenizer.load(tmp_path)
    for name in ("manifest.json", "spm.model"):
        if (data / name).exists():
            (tmp_path / name).write_bytes((data / name).read_bytes())
    (tmp_path / "dict.txt").write_bytes((data / "dict.txt").read_bytes() + b"more 1\n")
    with pytest.raises(ValueError, match=r"dict.txt: not the file that manifest.json names"):
        BoundTokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "lines", ["a 1\nb 2\n", "a 1\r\nx\x85y\u2028z 2\nc 0", "a 1\na 2 #fairseq:overwrite\nb 3\n", ""]
)
def test_dictionaries_are_read_as_fairseq_reads_them(tmp_path, lines):
    (tmp_path / "dict.txt").write_bytes(lines.encode())
    theirs, ours = Dictionary.load(str(tmp_path / "dict.txt")), PlainDictionary.load(tmp_path / "dict.txt")
    assert ours.symbols == theirs.symbols and ours.indices == theirs.indices and len(ours) == len(theirs)
    assert (ours.bos(), ours.pad(), ours.eos(), ours.unk()) == (theirs.bos(), theirs.pad(), theirs.eos(), theirs.unk())
    assert (ours.nspecial, ours.unk_word, ours.index("no such")) == (theirs.nspecial, theirs.unk_word, theirs.unk())


@pytest.mark.parametrize(
    "lines, words", [("a\n", "line 1 is 'a'"), ("a 1\n</s> 2\n", "line 2: '</s>'"), ("a x\n", "'a x'")]
)
def test_damaged_dictionaries_are_refused(tmp_path, lines, words):
    (tmp_path / "dict.txt").write_text(lines)
    with pytest.raises(ValueError, match=words):
        PlainDictionary.load(tmp_path / "dict.txt")


def test_without_fairseq(folders):
    script = """
import sys
sys.modules["fairseq"] = None
from fairseq_expire.tokenizers.bound import BoundTokenizer
for folder in sys.argv[1:]:
    print(BoundTokenizer.load(folder).encode("The text\\n"))
"""
    expected = [str(BoundTokenizer.load(folder).encode("The text\n")) for folder in folders.values()]
    assert commands.run(sys.executable, "-c", script, *folders.values()).splitlines()[-len(folders) :] == expected
