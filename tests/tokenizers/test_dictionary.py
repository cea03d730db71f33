"""dict.txt as fairseq's own reader takes it: what it takes is taken, with the same meaning, and nothing else is."""

import fuzzing
import pytest
from fairseq.data import Dictionary
from hypothesis import strategies as st

from fairseq_expire.tasks.data_folder import read_dictionary
from fairseq_expire.tokenizers.bound import BoundTokenizer
from fairseq_expire.tokenizers.dictionary import PlainDictionary
from fairseq_expire.tokenizers.registry import make_level

SYMBOLS = st.one_of(
    st.sampled_from(
        ["", "a", "b", "a b", " ", "  ", "<s>", "<pad>", "</s>", "<unk>", "madeupword0000", "\u2581the", "\ufeff", "\0"]
    ),
    st.sampled_from(
        ["\x85", "\u2028", "\u3000", "\t", "\x1c", "#fairseq:overwrite", "7", "a #fairseq:overwrite", "\U0001f600"]
    ),
    st.text(max_size=4),
)
COUNTS = st.one_of(
    st.integers(0, 10**20).map(str),
    st.sampled_from(
        ["-1", "+7", "1_000", "\u0663\u0664", "\u00b2", "1.0", "1e3", "", "x", "0x10", "1__0", "\t5", "9" * 5000]
    ),
)
FLAGS = st.sampled_from(
    ["", "", "", " #fairseq:overwrite", " #fairseq:overwrite #fairseq:overwrite", " ", "\x0b", " #other"]
)
ENDS = st.sampled_from(["\n", "\n", "\n", "\r\n", "\r", "\n\n", ""])
LINES = st.tuples(SYMBOLS, st.sampled_from([" ", " ", " ", "  ", "\t", ""]), COUNTS, FLAGS, ENDS).map("".join)
FILES = st.one_of(
    st.lists(LINES, max_size=6).map(lambda lines: "".join(lines).encode("utf-8", "replace")),
    # Most lines are as they should be, so that all of a file is.
    st.lists(st.tuples(SYMBOLS, st.sampled_from(["1", "-3", "0"]), FLAGS), max_size=6).map(
        lambda rows: "".join(f"{symbol} {count}{flag}\n" for symbol, count, flag in rows).encode("utf-8", "replace")
    ),
    st.binary(max_size=20),
)


def outcome(load, path):
    """Symbols, ids and the special ones, or None if the file is refused."""
    try:
        dictionary = load(path)
    # fairseq has several kinds of error.
    except Exception as error:
        if load != Dictionary.load:
            assert isinstance(error, ValueError) and "\n" not in str(error)
        return None
    special = [
        dictionary.bos(),
        dictionary.pad(),
        dictionary.eos(),
        dictionary.unk(),
        dictionary.nspecial,
        dictionary.unk_word,
    ]
    return (
        dictionary.symbols,
        dictionary.indices,
        len(dictionary),
        special,
        dictionary.index("no such"),
        dictionary.index("<unk>"),
    )


def test_what_fairseq_takes_is_taken_and_nothing_else(tmp_path, long):
    path = str(tmp_path / "dict.txt")
    taken = []

    def check(content):
        with open(path, "wb") as file:
            file.write(content)
        theirs = outcome(Dictionary.load, path)
        assert outcome(PlainDictionary.load, path) == theirs
        assert outcome(lambda path: read_dictionary(tmp_path), path) == theirs
        taken.append(theirs is not None)

    fuzzing.fuzz(check, examples=400, long=long, content=FILES)
    assert 0.1 < sum(taken) / len(taken) < 0.9


ODD = {
    "signs and separators": "a +5\nb -3\nc 1_000\nd \u0663\n",
    "empty symbol": "a 1\n 2\nb 3\n",
    "spaces in symbols": "a b 1\n  2\nc  3\n",
    "special symbols listed": "a 1\n<pad> 2 #fairseq:overwrite\n<unk> 1 #fairseq:overwrite\n<s> 1 #fairseq:overwrite\nb 1\n",
    "listed twice": "a 1\nb 1\na 2 #fairseq:overwrite\na 3 #fairseq:overwrite\n",
    "filled up": "a 1\nmadeupword0000 0\nmadeupword0001 0\n",
    "white space at the end": "a 1 \t\nb 2\x85\n",
    "no line end": "a 1\nb 2",
    "a byte order mark": "\ufeffa 1\nb 2\n",
    "nothing": "",
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_odd_dictionaries(tmp_path, content):
    path = tmp_path / "dict.txt"
    path.write_text(content, newline="")
    theirs = outcome(Dictionary.load, str(path))
    assert theirs is not None
    assert outcome(PlainDictionary.load, path) == theirs == outcome(lambda path: read_dictionary(tmp_path), path)
    # Words as fairseq looks them up, but for padding; every id has a text.
    dictionary, codec = Dictionary.load(str(path)), BoundTokenizer.of(tmp_path)
    words = ["a", "b", "c", "new", "<s>", "<pad>", "<unk>", "</s>", "\ufeffa", "madeupword0000"]
    expected = [dictionary.index(word) for word in words]
    expected = [dictionary.unk() if index == dictionary.pad() else index for index in expected]
    assert codec.encode(" ".join(words)) == expected
    codec.decode(range(len(dictionary)))


NAMES = {"bytes": ("a", "b", "\u010a"), "chars": ("a", "b", "U+000A"), "words": ("a", "b", "c")}


@pytest.mark.parametrize("level", NAMES)
def test_symbols_beyond_those_of_the_level(tmp_path, level):
    """Text becomes none of them, and they become the text that stands for unknown symbols."""
    first, second, third = NAMES[level]
    lines = [
        f"{third} 1",
        "madeupword0000 0",
        f"{second} 1",
        "<mask> 7",
        "",
        f"{first} 1",
        f"{second} 1 #fairseq:overwrite",
        "</s> 2 #fairseq:overwrite",
    ]
    (tmp_path / "dict.txt").write_text("".join(f"{line or ' 3'}\n" for line in lines))
    level = make_level(level, {})
    dictionary = PlainDictionary.load(tmp_path / "dict.txt")
    level.check(dictionary)
    codec = BoundTokenizer(dictionary, level)
    ids = codec.encode("a b")
    assert (ids[0], ids[-1]) == (9, 10) and codec.decode(ids).replace("?", " ").replace("\ufffd", " ") == "a b"
    # Both ids of what a later line overwrites.
    assert codec.decode([6]) == codec.decode([10]) == "b"


@pytest.mark.parametrize("level", ["bytes", "chars"])
@pytest.mark.parametrize(
    "content", ["the 5\na 4\nof 3\n", "a 1\nb 1\nthe 1\nof 1\n", "xy 1\n", "U+D800 1\n", "U+110000 1\n"]
)
def test_dictionaries_of_another_level(tmp_path, level, content):
    (tmp_path / "dict.txt").write_text(content)
    with pytest.raises(ValueError, match="expected a name of a"):
        make_level(level, {}).check(PlainDictionary.load(tmp_path / "dict.txt"))
