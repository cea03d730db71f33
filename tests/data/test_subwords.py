import inspect
import textwrap

import pytest
import sentencepiece
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset

from fairseq_expire.data import subwords
from fairseq_expire.data.binarize import Job, binarize
from fairseq_expire.data.levels import make_level
from fairseq_expire.data.read_back import restore, verify
from fairseq_expire.data.sources import Piece, find_files
from fairseq_expire.data.subwords import Subwords
from fairseq_expire.data.units import at_line, split_into_units

SOURCE = inspect.getsource(textwrap) + "</s> <unk> <s> <pad> U+000A \u2029 \xa0\x85\x1c\r\n" * 20
AWKWARD = "never seen: \U0001f600\0\u3000\r\r\n\n  </s><unk>\n <0x41> U+000A\n"


def make(folder, text, valid, options={"vocab_size": 600}, dictionary_file=None, level="subword"):
    folder.mkdir()
    for name, content in {"train": text, "valid": valid}.items():
        (folder / name).write_bytes(content.encode())
    splits = {split: find_files([folder / split]) for split in ("train", "valid")}
    (folder / "bin").mkdir()
    job = Job(splits=splits, level=make_level(level, options), dictionary_file=dictionary_file, append_eos=True)
    return folder / "bin", binarize(job, folder / "bin")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("subwords") / "a", SOURCE, AWKWARD)


def test_any_text_comes_back(made):
    folder, manifest = made
    assert b"".join(restore(folder, split="train")).decode() == SOURCE
    assert b"".join(restore(folder, split="valid")).decode() == AWKWARD
    assert manifest.splits["valid"].unknown == 0 and manifest.options == {"vocab_size": 600, "line_ends": "keep"}
    assert manifest.splits["valid"].text_chars == len(AWKWARD)
    assert len(list(verify(folder, on_progress=lambda split, num_bytes: None))) == 2


def test_ids_are_those_of_the_model_that_lies_beside_them(made):
    folder, manifest = made
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    dictionary = Dictionary.load(str(folder / "dict.txt"))
    # All pieces but its own <unk>, and fairseq's four special symbols.
    assert manifest.symbols == len(dictionary) == len(model) - 1 + 4
    ids = MMapIndexedDataset(str(folder / "train"))[0].tolist()
    pieces = model.encode(SOURCE)
    assert len(ids) == len(pieces) + 1 and ids[-1] == dictionary.eos()
    # One symbol for each piece, and the more frequent ones first.
    assert len(set(zip(pieces, ids))) == len(set(pieces)) == len(set(ids[:-1]))
    counts = [ids.count(index) for index in range(4, len(dictionary))]
    assert counts == sorted(counts, reverse=True) == dictionary.count[4:]
    assert not set(ids[:-1]) & {0, 1, 2, 3}


def test_a_space_mark_in_the_text_becomes_a_space(tmp_path):
    folder, _ = make(tmp_path / "a", SOURCE, "a\u2581b \u2581")
    assert b"".join(restore(folder, split="valid")) == b"a b  "


def test_line_ends_are_normalised(tmp_path):
    folder, _ = make(tmp_path / "a", SOURCE, "a\r\nb\rc\n", options={"vocab_size": 600, "line_ends": "normalise"})
    assert b"".join(restore(folder, split="valid")) == b"a\nb\nc\n"


def test_another_datas_model(tmp_path, made):
    first, _ = made
    folder, manifest = make(tmp_path / "a", "other text", AWKWARD, options={}, dictionary_file=first / "dict.txt")
    assert (folder / "spm.model").read_bytes() == (first / "spm.model").read_bytes()
    assert (folder / "valid.bin").read_bytes() == (first / "valid.bin").read_bytes()
    assert manifest.options["vocab_size"] == 600


def test_a_dictionary_without_its_model(tmp_path, made):
    words, _ = make(tmp_path / "words", "some words", "words", options={}, level="words")
    with pytest.raises(ValueError, match="words/bin: no spm.model beside its dictionary"):
        make(tmp_path / "a", SOURCE, AWKWARD, options={}, dictionary_file=words / "dict.txt")
    (words / "spm.model").write_bytes((made[0] / "spm.model").read_bytes())
    with pytest.raises(ValueError, match="dict.txt: not a dictionary of subwords .it lacks 5.. pieces of spm.model"):
        make(tmp_path / "b", SOURCE, AWKWARD, options={}, dictionary_file=words / "dict.txt")
    (words / "spm.model").write_bytes(b"x")
    with pytest.raises(ValueError, match="spm.model: cannot be read as a SentencePiece model"):
        make(tmp_path / "c", SOURCE, AWKWARD, options={}, dictionary_file=words / "dict.txt")


def test_a_model_that_the_text_is_too_short_for(tmp_path):
    with pytest.raises(ValueError, match="--vocab-size 9000: SentencePiece cannot make .*Please set it to a value <= "):
        make(tmp_path / "a", SOURCE, AWKWARD, options={"vocab_size": 9000})


@pytest.mark.parametrize("file_bytes, files", [(100, 200), (10_000, 2), (4_100, 1)])
def test_the_sample_is_as_large_as_it_may_be(tmp_path, monkeypatch, file_bytes, files):
    monkeypatch.setattr(subwords, "SLICE_BYTES", 200)
    monkeypatch.setattr(subwords, "SAMPLE_BYTES", 4000)
    pieces = []
    for number in range(files):
        path = tmp_path / f"{number:03}"
        path.write_text("a line\n" * (file_bytes // 7))
        pieces.append(Piece(path, 0, path.stat().st_size))
    sample = subwords.sample(list(split_into_units(pieces, unit_bytes=500, boundary=at_line)))
    assert 3600 <= sum(unit.num_bytes for unit in sample) <= 4000
    assert sample[-1].path.name == f"{files - 1:03}" or files == 200 and sample[-1].path.name > "190"


def test_lines_longer_than_sentencepiece_takes_are_cut(tmp_path):
    path = tmp_path / "text"
    path.write_text("ab \u20ac" * 50_000)
    level = Subwords(vocab_size=270)
    unit = next(split_into_units([Piece(path, 0, path.stat().st_size)], unit_bytes=1 << 20, boundary=at_line))
    lines = list(level._lines([unit]))
    assert "".join(lines) == path.read_text() and max(len(line.encode()) for line in lines) <= 4 * subwords.LINE_CHARS


def test_the_sample_is_bounded_and_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(subwords, "SAMPLE_BYTES", 4000)
    monkeypatch.setattr(subwords, "SLICE_BYTES", 200)
    for number in range(50):
        (tmp_path / f"{number:02}").write_text(f"line {number}\n" * 100)
    job = Job(splits={"train": find_files([tmp_path])}, level=Subwords(), unit_bytes=500)
    units = job.units("train")
    sample = subwords.sample(units)
    assert 2000 < sum(unit.num_bytes for unit in sample) <= 4000
    assert len({unit.path for unit in sample}) > 15 and sample[0].path.name < "05" and sample[-1].path.name > "45"
    assert all(unit.read().startswith(b"line") and unit.read().endswith(b"\n") for unit in sample)
    assert subwords.sample(units[:5]) == units[:5]
