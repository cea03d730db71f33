"""From text to the names of symbols, which fairseq looks up in its dictionary, and back."""

import inspect
import textwrap

import pytest
from fairseq.data import Dictionary

from fairseq_expire.corpora.binarize import Job, binarize
from fairseq_expire.corpora.sources import find_files
from fairseq_expire.tasks.memory_caching_lm import MemoryCachingLMConfig, MemoryCachingLMTask
from fairseq_expire.tasks.prompting import TokenizerBPE
from fairseq_expire.tokenizers.bound import BoundTokenizer, make_tokenizer

KINDS = {"bytes": {}, "chars": {}, "words": {}, "subword": {"vocab_size": 400}}
TEXT = "  def shorten(text, width):\té\u2581 \U0001f600  "


@pytest.fixture(scope="module", params=KINDS)
def data(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "train").write_text(inspect.getsource(textwrap) + TEXT * 9)
    (folder / "bin").mkdir()
    level = make_tokenizer(request.param, KINDS[request.param])
    binarize(Job(splits={"train": find_files([folder / "train"])}, tokenizer=level), folder / "bin", workers=1)
    return folder / "bin"


def test_text_round_trips(data):
    task = MemoryCachingLMTask.setup_task(MemoryCachingLMConfig(data=str(data)))
    bpe = task.build_bpe(None)
    if task.level == "words":
        assert bpe is None
        return
    names = bpe.encode(TEXT)
    tokens = Dictionary.load(str(data / "dict.txt")).encode_line(names, add_if_not_exist=False)
    assert tokens.tolist() == [*BoundTokenizer.load(data).encode(TEXT), task.dictionary.eos()]
    # SentencePiece turns its own sign for a space into a space.
    assert bpe.decode(task.dictionary.string(tokens)) == TEXT


def test_a_given_bpe_takes_precedence(data):
    task = MemoryCachingLMTask.setup_task(MemoryCachingLMConfig(data=str(data)))
    assert not isinstance(task.build_bpe("characters"), TokenizerBPE)
    assert task.build_bpe("characters").encode("ab") == "a b"
