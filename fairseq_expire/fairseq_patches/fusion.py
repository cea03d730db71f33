"""``--lm-path``: a language model that ``fairseq-generate`` adds to a translation model.

fairseq sets its task up with the folder of the translations in place of its own, and adds scores symbol by symbol.
"""

from argparse import Namespace
from pathlib import Path

import torch
from fairseq.data import Dictionary


def translation_dictionaries(folder: Path) -> list[Path]:
    """``dict.de.txt``, ``dict.en.txt``: what translation data has in place of a ``dict.txt``."""
    return sorted(folder.glob("dict.*.txt"))


def check_target_dictionary(folder: Path, dictionary: Dictionary) -> None:
    """Raises ValueError if the folder is one of translations, and this is the dictionary of none of its languages."""
    languages = translation_dictionaries(folder)
    if languages and all(Dictionary.load(str(path)).symbols != dictionary.symbols for path in languages):
        raise ValueError(
            f"{folder}/dict.txt has other symbols than {' and '.join(path.name for path in languages)}: a language model "
            "for --lm-path has to be trained with the dictionary of the target language (fairseq-preprocess --only-source "
            "--srcdict dict.TARGET.txt, or data_prep/text.py --dict)"
        )


def let_translation_models_load() -> None:
    """fairseq's translation models keep their options as a ``Namespace``, which torch from 2.6 on does not load of itself.

    It is a plain holder of values: nothing runs when one is loaded, and what it holds is looked at as all else is.
    """
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals([Namespace])
