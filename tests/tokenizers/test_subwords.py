"""Subwords: every text comes back with a model of ours or of others, which is learned from a bounded sample."""

import inspect
import textwrap

import pytest
import sentencepiece
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset

from fairseq_expire.corpora.binarize import Job, binarize
from fairseq_expire.corpora.sources import find_files
from fairseq_expire.corpora.verify import restore, verify
from fairseq_expire.tokenizers import subwords
from fairseq_expire.tokenizers.bound import BoundTokenizer, make_tokenizer
from fairseq_expire.tokenizers.chunks import FileSlice, at_line, split_into_chunks
from fairseq_expire.tokenizers.subwords import Subwords

SOURCE = inspect.getsource(textwrap) + "</s> <unk> <s> <pad> U+000A \u2029 \xa0\x85\x1c\r\n" * 20
AWKWARD = "never \u2581 seen\u2581\u2581: \U0001f600\0\u3000\r\r\n\n  </s><unk>\n <0x41> U+000A\n"


def make(folder, text, valid, options=None, dictionary_file=None, kind="subword"):
    """The folder of data made of two texts, and its manifest."""
    folder.mkdir()
    options = {"vocab_size": 600} if options is None else options
    contents = {name: content for name, content in {"train": text, "valid": valid}.items() if content}
    for name, content in contents.items():
        (folder / name).write_bytes(content.encode())
    splits = {split: find_files([folder / split]) for split in contents}
    (folder / "bin").mkdir()
    job = Job(splits=splits, tokenizer=make_tokenizer(kind, options), dictionary_file=dictionary_file, append_eos=True)
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
    # All pieces except its own <unk>, and fairseq's four special symbols.
    assert manifest.symbols == len(dictionary) == len(model) - 1 + 4
    ids = MMapIndexedDataset(str(folder / "train"))[0].tolist()
    pieces = model.encode(SOURCE)
    assert len(ids) == len(pieces) + 1 and ids[-1] == dictionary.eos()
    # One symbol for each piece, and the more frequent ones first.
    assert len(set(zip(pieces, ids))) == len(set(pieces)) == len(set(ids[:-1]))
    counts = [ids.count(index) for index in range(4, len(dictionary))]
    assert counts == sorted(counts, reverse=True) == dictionary.count[4:]
    assert not set(ids[:-1]) & {0, 1, 2, 3}


def test_a_space_mark_in_the_text_is_not_taken_for_a_space(tmp_path):
    text = "a\u2581b \u2581\u2581 \n\u2581"
    folder, manifest = make(tmp_path / "a", SOURCE + text, text)
    assert b"".join(restore(folder, split="valid")) == text.encode()
    assert manifest.splits["valid"].text_bytes == len(text.encode()) and manifest.splits["valid"].unknown == 0
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    # No piece holds it except for a space.
    assert all(
        piece.count("\u2581") == piece.startswith("\u2581") for piece in map(model.id_to_piece, range(len(model)))
    )


FOREIGN = {
    "as ours": ({}, None),
    "nfkc": ({"normalization_rule_name": "nfkc"}, "spm.model does not keep a text as it is"),
    "a space in front": ({"add_dummy_prefix": True}, "spm.model does not keep a text as it is"),
    "fewer spaces": ({"remove_extra_whitespaces": True}, "spm.model does not keep a text as it is"),
    "no bytes": ({"byte_fallback": False}, "spm.model: has no pieces for bytes"),
    "spaces behind": ({"treat_whitespace_as_suffix": True}, None),
    "spaces anywhere": ({"split_by_whitespace": False}, None),
    "bpe": ({"model_type": "bpe"}, None),
    "line ends in no piece": ({"user_defined_symbols": []}, None),
    "other special pieces": (
        {"unk_id": 2, "bos_id": 1, "eos_id": 0, "pad_id": 3, "user_defined_symbols": ["\n", "<pad>"]},
        None,
    ),
}


@pytest.mark.parametrize("options, error", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_model_keeps_the_text_or_is_refused(tmp_path, options, error):
    source = tmp_path / "source"
    source.mkdir()
    ours = {
        "vocab_size": 500, "model_type": "unigram", "normalization_rule_name": "identity", "add_dummy_prefix": False,
        "remove_extra_whitespaces": False, "byte_fallback": True, "user_defined_symbols": ["\n"],
        "unk_id": 0, "bos_id": -1, "eos_id": -1, "pad_id": -1,
    }  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SOURCE.splitlines()),
        model_prefix=str(source / "spm"),
        minloglevel=3,
        **{**ours, **options},
    )
    tokenizer = Subwords()
    if error:
        with pytest.raises(ValueError, match=error):
            tokenizer.load(source)
        return
    tokenizer.load(source)
    (source / "dict.txt").write_text("".join(f"{name} 1\n" for name in tokenizer.fixed_symbols()))
    folder, manifest = make(tmp_path / "a", "", AWKWARD, options={}, dictionary_file=source / "dict.txt")
    assert b"".join(restore(folder, split="valid")) == AWKWARD.encode() and manifest.splits["valid"].unknown == 0
    bound = BoundTokenizer.load(folder)
    # Without "000": of two equally probable segmentations, SentencePiece chooses by the text before them.
    text, encoder = AWKWARD.replace("U+000A", "") * 2, bound.stream_encoder()
    ids = [index for byte in text.encode() for index in encoder.feed(bytes([byte]))] + encoder.flush()
    assert ids == bound.encode(text)


def test_pieces_that_the_dictionary_lacks_are_unknown_and_counted(tmp_path, made):
    """fairseq-preprocess writes such dictionaries: without pieces that do not occur, and filled up."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "spm.model").write_bytes((made[0] / "spm.model").read_bytes())
    lines = (made[0] / "dict.txt").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("<0xF0>", "a "))]
    (source / "dict.txt").write_text("\n".join([*kept[::-1], "<mask> 0", "madeupword0000 0"]) + "\n")
    text = "xyz\U0001f600 a\n"
    folder, manifest = make(tmp_path / "a", "", text, options={}, dictionary_file=source / "dict.txt")
    assert manifest.splits["valid"].unknown == 1
    with pytest.raises(ValueError, match=r"1 of the .* symbols of valid are <unk>"):
        restore(folder, split="valid")
    assert len(list(verify(folder, on_progress=lambda split, num_bytes: None))) == 1
    bound = BoundTokenizer.load(folder)
    assert bound.decode_bytes(bound.encode(text)) == text.encode().replace(b"\xf0", "\ufffd".encode())


def test_line_ends_are_normalised(tmp_path):
    folder, _ = make(tmp_path / "a", SOURCE, "a\r\nb\rc\n", options={"vocab_size": 600, "line_ends": "normalise"})
    assert b"".join(restore(folder, split="valid")) == b"a\nb\nc\n"


def test_the_model_of_other_data_is_copied(tmp_path, made):
    first, _ = made
    folder, manifest = make(tmp_path / "a", "other text", AWKWARD, options={}, dictionary_file=first / "dict.txt")
    assert (folder / "spm.model").read_bytes() == (first / "spm.model").read_bytes()
    assert (folder / "valid.bin").read_bytes() == (first / "valid.bin").read_bytes()
    assert manifest.options["vocab_size"] == 600


def test_a_dictionary_without_its_model_is_refused(tmp_path, made):
    words, _ = make(tmp_path / "words", "some words", "words", options={}, kind="words")
    with pytest.raises(ValueError, match=r"words/bin: no spm.model beside its dictionary"):
        make(tmp_path / "a", SOURCE, AWKWARD, options={}, dictionary_file=words / "dict.txt")
    (words / "spm.model").write_bytes((made[0] / "spm.model").read_bytes())
    with pytest.raises(ValueError, match=r"dict.txt: not a dictionary of subwords .it lacks 5.. pieces of spm.model"):
        make(tmp_path / "b", SOURCE, AWKWARD, options={}, dictionary_file=words / "dict.txt")
    (words / "spm.model").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"spm.model: cannot be read as a SentencePiece model"):
        make(tmp_path / "c", SOURCE, AWKWARD, options={}, dictionary_file=words / "dict.txt")


def test_a_text_too_short_for_the_model(tmp_path):
    with pytest.raises(
        ValueError, match=r"--vocab-size 9000: SentencePiece cannot make .*Please set it to a value <= "
    ):
        make(tmp_path / "a", SOURCE, AWKWARD, options={"vocab_size": 9000})


@pytest.mark.parametrize("file_bytes, files", [(100, 200), (10_000, 2), (4_100, 1)])
def test_the_sample_is_as_large_as_allowed(tmp_path, monkeypatch, file_bytes, files):
    monkeypatch.setattr(subwords, "MIN_SAMPLE_BYTES", 200)
    monkeypatch.setattr(subwords, "SAMPLE_BYTES", 4000)
    slices = []
    for number in range(files):
        path = tmp_path / f"{number:03}"
        path.write_text("a line\n" * (file_bytes // 7))
        slices.append(FileSlice(path, 0, path.stat().st_size))
    sample = Subwords().sample(list(split_into_chunks(slices, chunk_bytes=500, boundary=at_line)))
    assert 3600 <= sum(chunk.num_bytes for chunk in sample) <= 4000
    assert sample[-1].path.name == f"{files - 1:03}" or (files == 200 and sample[-1].path.name > "190")


def test_lines_longer_than_sentencepiece_takes_are_cut(tmp_path):
    path = tmp_path / "text"
    path.write_text("ab \u20ac" * 50_000)
    tokenizer = Subwords(vocab_size=270)
    chunk = next(split_into_chunks([FileSlice(path, 0, path.stat().st_size)], chunk_bytes=1 << 20, boundary=at_line))
    lines = list(tokenizer._lines([chunk]))
    assert "".join(lines) == path.read_text() and max(len(line.encode()) for line in lines) <= 4 * subwords.LINE_CHARS


def test_the_sample_is_bounded_and_spread_over_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(subwords, "SAMPLE_BYTES", 4000)
    monkeypatch.setattr(subwords, "MIN_SAMPLE_BYTES", 200)
    for number in range(50):
        (tmp_path / f"{number:02}").write_text(f"line {number}\n" * 100)
    job = Job(splits={"train": find_files([tmp_path])}, tokenizer=Subwords(), chunk_bytes=500)
    chunks = job.chunks("train")
    sample = job.tokenizer.sample(chunks)
    assert 2000 < sum(chunk.num_bytes for chunk in sample) <= 4000
    assert len({chunk.path for chunk in sample}) > 15 and sample[0].path.name < "05" and sample[-1].path.name > "45"
    assert all(chunk.read().startswith(b"line") and chunk.read().endswith(b"\n") for chunk in sample)
    assert job.tokenizer.sample(chunks[:5]) == chunks[:5]
