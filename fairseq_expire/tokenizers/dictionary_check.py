"""The one check that a model is read with the dictionary it was trained with, wherever it is read."""

import hashlib
from collections.abc import Iterable, Sequence

# The name under which the options of a checkpoint's model, and the configuration of an export, hold the digest.
DIGEST = "dictionary_digest"


def dictionary_digest(symbols: Sequence[str]) -> str:
    """Returns the SHA-256 of the symbols in their order, in hexadecimal: it tells dictionaries of one size apart."""
    return hashlib.sha256("\n".join(symbols).encode("utf-8")).hexdigest()


def check_dictionary(digest: str | None, symbols: Sequence[str], *, model: str, dictionary: str) -> None:
    """Raises ValueError if the digest is that of another dictionary.

    Args:
        digest: that was stored with the model; None if none was, and then only the shapes of the weights can tell.
        symbols: of the dictionary that the model is to be read with, in order.
        model, dictionary: what the two are called in the sentence.
    """
    if digest is not None and digest != dictionary_digest(symbols):
        raise ValueError(
            f"{model} was trained with another dictionary than {dictionary} ({len(symbols)} symbols): give the data it was "
            "trained on, or prepare the text with its own dict.txt (data_prep/text.py --dict)"
        )


def check_names(names: Iterable[str], *, model: str) -> None:
    """Raises ValueError if weights have the names that earlier versions gave them.

    Args:
        names: the names of the weights in a checkpoint.
        model: what the checkpoint is called in the message.
    """
    if "decoder.stack.position" in names:
        raise ValueError(
            f"{model} was written by an earlier version of fairseq_expire, which gave its weights other names: "
            "use that version, or train it again"
        )
