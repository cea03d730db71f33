"""The names of bytes and characters: one each, as fairseq has them, and they can be read back."""

import pytest
from fairseq.data import Dictionary
from fairseq.data.encoders.bytes import Bytes
from fairseq.data.encoders.characters import Characters

from fairseq_expire.tokenizers.bytes_and_chars import byte_of, byte_symbol, char_symbol, code_point_of

SURROGATES = range(0xD800, 0xE000)


def reloaded(symbols, folder):
    """The symbols of a dictionary that is saved and loaded."""
    dictionary = Dictionary()
    for symbol in symbols:
        dictionary.add_symbol(symbol)
    dictionary.save(str(folder / "dict.txt"))
    return Dictionary.load(str(folder / "dict.txt")).symbols[dictionary.nspecial :]


def test_every_byte_has_a_name_of_its_own(tmp_path):
    names = [byte_symbol(byte) for byte in range(256)]
    assert len(set(names)) == 256
    assert [byte_of(name) for name in names] == list(range(256))
    assert reloaded(names, tmp_path) == names


def test_bytes_are_named_as_fairseq_names_them():
    text = "A z 0~é€\U0001f600\u2581\0\x7f"
    assert [byte_symbol(byte) for byte in text.encode()] == Bytes.encode(text).split(" ")


def test_every_character_has_a_name_of_its_own(tmp_path):
    codes = [code for code in range(0x110000) if code not in SURROGATES]
    names = [char_symbol(code) for code in codes]
    assert [code_point_of(name) for name in names] == codes
    assert not any(symbol != symbol.strip() or len(symbol.split()) != 1 for symbol in names)
    # The first plane holds all characters that may be taken for white space or a line break.
    assert reloaded(names[:0x10000], tmp_path) == names[:0x10000]


def test_printable_characters_are_named_as_fairseq_names_them():
    text = "A z 0~é€\U0001f600e\u0301\u4e2d"
    assert [char_symbol(ord(char)) for char in text] == Characters.encode(text).split(" ")


def test_other_characters_are_named_by_number():
    named = {
        "\n": "U+000A",
        "\x85": "U+0085",
        "\xa0": "U+00A0",
        "\u2581": "U+2581",
        "\u2028": "U+2028",
        "\U000e0001": "U+E0001",
    }
    assert {char: char_symbol(ord(char)) for char in named} == named


@pytest.mark.parametrize("name", ["", " ", "ab", "<unk>", "▂", "\u0100\u0101"])
def test_names_of_no_byte(name):
    with pytest.raises(ValueError, match="expected a name of a byte"):
        byte_of(name)


@pytest.mark.parametrize("name", ["", "ab", "<unk>", "U+", "U+a", "U+00000A", "U+xyz", "U+-001", "000A"])
def test_names_of_no_character(name):
    with pytest.raises(ValueError, match="expected a name of a character"):
        code_point_of(name)
