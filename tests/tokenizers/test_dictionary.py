"""Reading dict.txt: the same files are accepted as by fairseq's own reader, with the same meaning."""

import fuzzing
import pytest
from fairseq.data import Dictionary
from hypothesis import strategies as st

from fairseq_expire.tasks.data_folder import read_dictionary
from fairseq_expire.tokenizers.bound import BoundTokenizer, make_tokenizer
from fairseq_expire.tokenizers.dictionary import PlainDictionary

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
    # Files of which most lines are correct, so that some are wholly correct.
    st.lists(st.tuples(SYMBOLS, st.sampled_from(["1", "-3", "0"]), FLAGS), max_size=6).map(
        lambda rows: "".join(f"{symbol} {count}{flag}\n" for symbol, count, flag in rows).encode("utf-8", "replace")
    ),
    st.binary(max_size=20),
)


def outcome(load, path):
    """Symbols, ids and special symbols; None if the file is refused."""
    try:
        dictionary = load(path)
    # fairseq raises several kinds of error.
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


def test_the_same_files_are_accepted_as_by_fairseq(tmp_path, long):
    path = str(tmp_path / "dict.txt")
    accepted = []

    def check(content):
        with open(path, "wb") as file:
            file.write(content)
        theirs = outcome(Dictionary.load, path)
        assert outcome(PlainDictionary.load, path) == theirs
        assert outcome(lambda path: read_dictionary(tmp_path), path) == theirs
        accepted.append(theirs is not None)

    fuzzing.fuzz(check, examples=400, long=long, content=FILES)
    assert 0.1 < sum(accepted) / len(accepted) < 0.9


ODD = {
    "signs and separators": "a +5\nb -3\nc 1_000\nd \u0663\n",
    "empty symbol": "a 1\n 2\nb 3\n",
    "spaces in symbols": "a b 1\n  2\nc  3\n",
    "special symbols listed": "a 1\n<pad> 2 #fairseq:overwrite\n<unk> 1 #fairseq:overwrite\n<s> 1 #fairseq:overwrite\n"
    "b 1\n",
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
    # Words get the ids that fairseq gives them, except <pad>; every id has a text.
    dictionary, tokenizer = Dictionary.load(str(path)), BoundTokenizer.load(tmp_path)
    words = ["a", "b", "c", "new", "<s>", "<pad>", "<unk>", "</s>", "\ufeffa", "madeupword0000"]
    expected = [dictionary.index(word) for word in words]
    expected = [dictionary.unk() if index == dictionary.pad() else index for index in expected]
    assert tokenizer.encode(" ".join(words)) == expected
    tokenizer.decode(range(len(dictionary)))


NAMES = {"bytes": ("a", "b", "\u010a"), "chars": ("a", "b", "U+000A"), "words": ("a", "b", "c")}


@pytest.mark.parametrize("name", NAMES)
def test_symbols_that_are_not_the_tokenizers(tmp_path, name):
    """No text becomes such a symbol, and each becomes the text that stands for unknown symbols."""
    first, second, third = NAMES[name]
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
    tokenizer = make_tokenizer(name, {})
    dictionary = PlainDictionary.load(tmp_path / "dict.txt")
    tokenizer.check(dictionary)
    bound = BoundTokenizer(dictionary, tokenizer)
    ids = bound.encode("a b")
    assert (ids[0], ids[-1]) == (9, 10) and bound.decode(ids).replace("?", " ").replace("\ufffd", " ") == "a b"
    # A symbol that a later line overwrites has two ids.
    assert bound.decode([6]) == bound.decode([10]) == "b"


@pytest.mark.parametrize("name", ["bytes", "chars"])
@pytest.mark.parametrize(
    "content", ["the 5\na 4\nof 3\n", "a 1\nb 1\nthe 1\nof 1\n", "xy 1\n", "U+D800 1\n", "U+110000 1\n"]
)
def test_dictionaries_of_another_tokenizer_are_refused(tmp_path, name, content):
    (tmp_path / "dict.txt").write_text(content)
    with pytest.raises(ValueError, match="expected a name of a"):
        make_tokenizer(name, {}).check(PlainDictionary.load(tmp_path / "dict.txt"))
