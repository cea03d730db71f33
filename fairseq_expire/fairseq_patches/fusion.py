"""The dictionary of a language model that ``fairseq-generate --lm-path`` adds to a translation model.

fairseq sets up the task of the language model with the folder of the translations, and adds the scores of both models
symbol by symbol, without looking whether the dictionaries are the same.
"""

from pathlib import Path

from fairseq.data import Dictionary


def translation_dictionaries(folder: Path) -> list[Path]:
    """Returns ``dict.de.txt``, ``dict.en.txt``: the files that data for translation has in place of ``dict.txt``."""
    return sorted(folder.glob("dict.*.txt"))


def check_target_dictionary(folder: Path, dictionary: Dictionary) -> None:
    """Raises ValueError if the folder holds translations, and none of its languages has this dictionary."""
    languages = translation_dictionaries(folder)
    if languages and all(Dictionary.load(str(path)).symbols != dictionary.symbols for path in languages):
        raise ValueError(
            f"{folder}/dict.txt has other symbols than {' and '.join(path.name for path in languages)}: a language "
            "model for --lm-path has to be trained with the dictionary of the target language (fairseq-preprocess "
            "--only-source --srcdict dict.TARGET.txt, or data_prep/text.py --dict)"
        )
