"""Verification finds every damage of data."""

import numpy as np
import pytest

from fairseq_expire.corpora.binarize import Job, binarize
from fairseq_expire.corpora.sources import find_files
from fairseq_expire.corpora.verify import verify
from fairseq_expire.tokenizers.bound import make_tokenizer

OPTIONS = {"bytes": {}, "chars": {"line_ends": "normalise"}, "words": {}, "subword": {"vocab_size": 275}}


def ignore(split, num_bytes):
    pass


@pytest.fixture(params=OPTIONS)
def data(request, tmp_path):
    """A data-bin of two splits, with symbols that train lacks."""
    lines = [f"{i % 7} \u20ac\U0001f600\r\n{'word ' * (i % 13)}\n{'x' * (i % 5)}  end" for i in range(60)]
    (tmp_path / "train").write_text(" ".join(lines), newline="")
    (tmp_path / "valid").write_text("words \u03b1 that train \u03b2 lacks\n" * 5)
    splits = {split: find_files([tmp_path / split]) for split in ("train", "valid")}
    tokenizer = make_tokenizer(request.param, OPTIONS[request.param])
    (tmp_path / "bin").mkdir()
    binarize(Job(splits=splits, tokenizer=tokenizer, chunk_bytes=100), tmp_path / "bin", workers=1)
    return tmp_path / "bin"


def flip(content):
    """Replaces a symbol by another one of the dictionary."""
    content[200] = 5 if content[200] != 5 else 6
    assert content[201] == 0


def move_border(content):
    """Makes the first item a token longer, and the second one a token shorter."""
    sizes = np.frombuffer(content, np.int32, count=2, offset=26).copy() + [1, -1]
    content[26:34] = sizes.astype(np.int32).tobytes()


def damage_header(content):
    content[18] ^= 1


def cut_offsets(content):
    del content[-8:]


def cut_sizes(content):
    del content[34:]


def cut(content):
    del content[-2:]


def lengthen(content):
    content += b"\n\n"


DAMAGE = {
    flip: (
        "train.bin",
        r"train.bin: the text in it has the SHA-256 .* and the text it was made of had|does not end in </s>",
    ),
    cut: ("train.bin", r"train.bin: shorter than its index says"),
    lengthen: ("train.bin", r"train.bin: longer than its index says"),
    damage_header: ("train.idx", r"train.idx: not the index of this data"),
    cut_offsets: ("train.idx", r"train.idx: CRC-32"),
    cut_sizes: ("train.idx", r"train.idx: cut short"),
    move_border: ("train.idx", r"train.idx: CRC-32|does not end in </s>|the text in it has the SHA-256"),
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_found(data, damage):
    assert len(list(verify(data, on_progress=ignore))) == 2
    name, message = DAMAGE[damage]
    content = bytearray((data / name).read_bytes())
    damage(content)
    (data / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(verify(data, on_progress=ignore))


def test_another_dictionary_is_found(data):
    with open(data / "dict.txt", "ab") as file:
        file.write(b"\n\n")
    with pytest.raises(ValueError, match=r"dict.txt: not the file that manifest.json names"):
        list(verify(data, on_progress=ignore))
