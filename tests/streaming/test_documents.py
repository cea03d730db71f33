"""Passes over a corpus of documents: a memory that is made again, and text that is skipped, know the borders."""

import itertools

import numpy as np
import pytest
import torch
from building import build

from fairseq_expire.streaming.batch_iterator import MemoryBatchIterator
from fairseq_expire.streaming.blocks import BlockDataset
from fairseq_expire.streaming.corpus import TextCorpus

EOS, BLOCK = 2, 8
# The first document is longer than all that any of the models remembers.
LENGTHS = [90, 3, 1, 20, 66, 40]
ARCHS = {
    "expire_span_lm": ["--max-span", "20", "--span-ramp", "4", "--span-init", "9"],
    "transformer_xl_lm": ["--max-span", "11"],
    "adaptive_span_lm": ["--max-span", "20", "--span-ramp", "4", "--span-init", "7"],
    "compressive_transformer_lm": ["--max-span", "9", "--compressed-size", "4", "--compression-rate", "3"],
}


class Corpus:
    """A stand-in for a token stream of documents that end in ``</s>``."""

    pad = 1
    prefixes = ["documents"]

    def __init__(self):
        self.tokens = np.random.default_rng(0).integers(4, 90, sum(LENGTHS))
        self.tokens[np.cumsum(LENGTHS) - 1] = EOS

    def __len__(self):
        return len(self.tokens)

    def read(self, start, stop):
        return self.tokens[start:stop]

    def document(self, token):
        """Returns the inputs of a document, from its ``</s>`` in front to the input that predicts ``token``."""
        inputs = np.concatenate([[EOS], self.tokens[:token]])
        return torch.from_numpy(inputs[np.flatnonzero(inputs == EOS)[-1] :])


def blocks(rows, state=None):
    dataset = BlockDataset(
        TextCorpus(Corpus(), eos=EOS), rows=rows, block=BLOCK, micro_batches=1, shard_id=0, num_shards=1
    )
    batches = MemoryBatchIterator(dataset, epoch=1, num_workers=0, buffer_size=0, skip_remainder_batch=False)
    if state is not None:
        batches.load_state_dict(state)
    return batches


def one_layer(arch):
    """A model whose memory holds embeddings alone, so that reading again gives all that was lost."""
    torch.manual_seed(0)
    size = ["--decoder-layers", "1", "--decoder-embed-dim", "8", "--decoder-ffn-embed-dim", "8"]
    more = ["--decoder-attention-heads", "2", "--dropout", "0", "--position-range", "8", "--break-memory-at-eos"]
    return build(*size, *more, *ARCHS[arch], arch=arch).decoder.model


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("rows, other_rows, done", [(1, 1, 10), (1, 1, 11), (2, 2, 9), (2, 3, 5), (1, 2, 3)])
@torch.no_grad()
def test_a_memory_that_is_made_again(arch, rows, other_rows, done):
    """After it, features are those of each document alone; also where the rows are others."""
    model, corpus = one_layer(arch), Corpus()
    begun = blocks(rows)
    for _ in itertools.islice(begun.next_epoch_itr(), done):
        pass
    rest = blocks(other_rows, begun.state_dict())
    read = 0
    for batch in rest.next_epoch_itr():
        tokens, handle = batch["net_input"]["src_tokens"], batch["net_input"]["memory"]
        before = handle.load(model)
        out = model.read(tokens, before)
        handle.store(model, before, out.memory)
        for row in range(other_rows):
            targets = int(batch["target"][row].ne(1).sum())
            for number in {0, 3, targets - 1} & set(range(targets)):
                token = place_in_corpus(rest.dataset, row, batch["offset"] + number)
                if token is None:
                    continue
                alone = model.read(corpus.document(token)[None]).hidden[0, -1]
                torch.testing.assert_close(out.hidden[row, number], alone)
                read += 1
    assert read >= 9


def place_in_corpus(dataset, row, offset):
    """Returns the place of token ``offset`` of a row; None behind a joint of texts, where the memory is of another."""
    begin = dataset.row_borders[row]
    intervals = dataset._in_corpus(begin, begin + offset + 1)
    return intervals[0].stop - 1 if len(intervals) == 1 else None


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_documents_that_begin_in_a_skipped_block(arch):
    model = one_layer(arch)
    batches = [batch["net_input"] for batch in itertools.islice(blocks(1).next_epoch_itr(), 15)]

    def read(number):
        memory = batches[number]["memory"].load(model)
        batches[number]["memory"].store(model, memory, model.read(batches[number]["src_tokens"], memory).memory)

    # Inputs 90, 93 and 94 are </s>, in block 11.
    read(10)
    (before,) = batches[11]["memory"].load(model).layers
    assert before.tokens_read == (88,) and before.counts[0] >= BLOCK
    (after,) = batches[12]["memory"].load(model).layers
    assert after.tokens_read == (2,) and after.counts == (0,)
    read(12)
    (later,) = batches[14]["memory"].load(model).layers
    assert later.tokens_read == (18,) and (later.age[later.occupied] > BLOCK).all()


def test_tokens_since_a_symbol():
    batches = blocks(2)
    # Rows of 110 tokens. The inputs of the first are </s> and tokens 0 ... 108; </s> are tokens 89, 92, 93, 113, ...
    assert batches.dataset.row_borders == [0, 110, 220]
    expected = {0: [None, None], 1: [1, None], 80: [80, 80 - 70], 96: [96 - 94, 96 - 70], 110: [110 - 94, 110 - 70]}
    for offset, since in expected.items():
        assert batches.dataset.tokens_since(EOS, 0, offset) == since
    assert batches.dataset.tokens_since(EOS, 0, 110, back=30) == [80, 10]
    assert batches.dataset.tokens_since(77777, 0, 110) == [None, None]
