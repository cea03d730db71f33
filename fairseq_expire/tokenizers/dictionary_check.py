"""The one check that a model is read with the dictionary it was trained with, wherever it is read."""

from collections.abc import Iterable, Sequence

from fairseq_expire.modules import dictionary_digest

# Where the options of a checkpoint's model, and the configuration of an export, hold the digest of their dictionary.
DIGEST = "dictionary_digest"


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
        names: of the weights in a checkpoint.
        model: what it is called in the sentence.
    """
    if any(name.split(".")[-1] == DIGEST for name in names):
        raise ValueError(
            f"{model} was written by an earlier version of fairseq_expire, which kept its dictionary among the weights: "
            "use that version, or train it again"
        )
