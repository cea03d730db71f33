r"""How bytes and characters are named in dict.txt, so that no name holds white space and every name can be read back.

A byte has the name that fairseq's `--bpe bytes` gives it, one character each. A character is its own name, as in fairseq's
`--bpe characters`, unless it is white space, not printable or U+2581: those are named by number, "\n" for one is U+000A.
A space is U+2581 for both.
"""

SPACE, SPACE_ESCAPE = " ", "\u2581"
# As fairseq's table: Latin-1, but what cannot be seen there is 256 further on.
BYTE_TO_BCHAR = {byte: chr(byte) if chr(byte).isprintable() else chr(256 + byte) for byte in range(256)}
BCHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_BCHAR.items()}


def byte_symbol(byte: int) -> str:
    """The name of a byte, 0 to 255."""
    # The space is the only byte that fairseq's table maps to white space.
    return BYTE_TO_BCHAR[byte].replace(SPACE, SPACE_ESCAPE)


def byte_of(symbol: str) -> int:
    """The inverse of `byte_symbol`.

    Raises:
        ValueError: no byte has this name.
    """
    byte = BCHAR_TO_BYTE.get(SPACE if symbol == SPACE_ESCAPE else symbol)
    if byte is None or byte_symbol(byte) != symbol:
        raise ValueError(f"symbol {symbol!r}: expected a name of a byte; was the dictionary made with --level bytes?")
    return byte


def char_symbol(code: int) -> str:
    """The name of the character with code point `code`."""
    char = chr(code)
    if char == SPACE:
        return SPACE_ESCAPE
    # Of all that is printable only the space is white space. Longer names cannot be mistaken for a single character.
    return f"U+{code:04X}" if char == SPACE_ESCAPE or not char.isprintable() else char


def code_of(symbol: str) -> int:
    """The inverse of `char_symbol`; independent of what this version of Python thinks is printable.

    Raises:
        ValueError: no character has this name.
    """
    if symbol == SPACE_ESCAPE:
        return ord(SPACE)
    if len(symbol) == 1:
        return ord(symbol)
    digits = symbol.removeprefix("U+")
    try:
        code = int(digits, 16)
    except ValueError:
        code = -1
    # Half of a pair, as UTF-16 has them, is no character.
    if not 0 <= code < 0x110000 or 0xD800 <= code < 0xE000 or symbol != f"U+{code:04X}":
        raise ValueError(
            f"symbol {symbol!r}: expected a name of a character; was the dictionary made with --level chars?"
        )
    return code


def name_of_text(text: str) -> str:
    """The names of all its characters, one after the other; different texts can have the same."""
    return "".join(char_symbol(ord(char)) for char in text)
