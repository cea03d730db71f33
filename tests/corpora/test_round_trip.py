"""Any text comes back exactly, byte for byte: from data, and from ids."""

import hashlib
import inspect
import shutil
import textwrap

import fuzzing
import pytest
from hypothesis import strategies as st

from fairseq_expire.corpora.binarize import Job, binarize
from fairseq_expire.corpora.sources import find_files
from fairseq_expire.corpora.verify import restore, verify
from fairseq_expire.tokenizers.bound import BoundTokenizer, make_tokenizer

# Text that some program somewhere changes.
AWKWARD = [
    "\u2581", "\u2581\u2581 ", " ", "  ", "\n", "\r", "\r\n", "\n\r", "\0", "\t", "\x0b", "\x1c", "\x85", "\xa0",
    "\xad", "\u2028", "\u2029", "\u3000", "\u200b", "\ufeff", "\ufffd", "\ufffe", "\ue000", "\U0001f600",
    "\U0001f468\u200d\U0001f469", "e\u0301", "\u00e9", "\u212b", "\ufb01", "\u0130", "\uff21", "\u2585", "\u2047",
    "\U0010ffff", "<s>", "<pad>", "</s>", "<unk>", "<unk>'", "<0xE2>", "<0x0A>", "U+000A", "U+2581", "madeupword0000",
    "#fairseq:overwrite", "?", "a", "def", "the", "word " * 50,
]  # fmt: skip
TEXTS = (
    st.lists(st.one_of(st.sampled_from(AWKWARD), st.text(max_size=5)), min_size=1, max_size=12)
    .map("".join)
    .filter(bool)
)
KINDS = {"bytes": {}, "chars": {}, "subword": {"vocab_size": 600}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with the dictionary and the model of subwords, shared since learning is slow."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "text").write_text(inspect.getsource(textwrap) + "\u2581 \u00e9\U0001f600 " * 20)
    (folder / "bin").mkdir()
    job = Job(splits={"train": find_files([folder / "text"])}, tokenizer=make_tokenizer("subword", KINDS["subword"]))
    binarize(job, folder / "bin", workers=1)
    return folder / "bin"


@pytest.mark.parametrize("level", KINDS)
def test_any_text_comes_back(tmp_path, model, level, long):
    def check(content, chunk_bytes, append_eos):
        (tmp_path / "text").write_bytes(content)
        shutil.rmtree(tmp_path / "bin", ignore_errors=True)
        (tmp_path / "bin").mkdir()
        job = Job(
            splits={"train": find_files([tmp_path / "text"])},
            tokenizer=make_tokenizer(level, {}),
            chunk_bytes=chunk_bytes,
            append_eos=append_eos,
            dictionary_file=model / "dict.txt" if level == "subword" else None,
        )
        counts = binarize(job, tmp_path / "bin", workers=1).splits["train"]
        assert b"".join(restore(tmp_path / "bin", split="train")) == content
        assert (counts.text_bytes, counts.source_bytes, counts.unknown) == (len(content), len(content), 0)
        assert counts.text_sha256 == hashlib.sha256(content).hexdigest()
        assert len(list(verify(tmp_path / "bin", on_progress=lambda split, num_bytes: None))) == 1

        tokenizer = BoundTokenizer.load(tmp_path / "bin")
        ids = tokenizer.encode(content)
        assert tokenizer.decode_bytes(ids) == content and not {0, 1, 2, 3} & set(ids)
        encoder = tokenizer.stream_encoder()
        parts = [encoder.feed(content[start : start + 3]) for start in range(0, len(content), 3)] + [encoder.flush()]
        assert b"".join(map(tokenizer.decode_bytes, parts)) == content
        if level != "subword":
            # SentencePiece chooses between equally probable segmentations by the text before them.
            assert [index for part in parts for index in part] == ids

    contents = TEXTS.map(str.encode)
    if level == "bytes":
        contents = st.one_of(contents, st.binary(min_size=1, max_size=40))
    sizes = st.sampled_from([1, 2, 3, 7, 1 << 20])
    fuzzing.fuzz(check, examples=40, long=long, content=contents, chunk_bytes=sizes, append_eos=st.booleans())


@pytest.mark.parametrize("level", KINDS)
def test_a_very_long_line(tmp_path, model, level):
    """A line longer than a chunk, without a space or a line end."""
    content = ("\u2581\u4e2dx" * 400_000).encode()
    (tmp_path / "text").write_bytes(content)
    (tmp_path / "bin").mkdir()
    dictionary = model / "dict.txt" if level == "subword" else None
    job = Job(
        splits={"train": find_files([tmp_path / "text"])},
        tokenizer=make_tokenizer(level, {}),
        dictionary_file=dictionary,
    )
    binarize(job, tmp_path / "bin", workers=1)
    assert b"".join(restore(tmp_path / "bin", split="train")) == content
