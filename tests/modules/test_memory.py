import copy
import io
import pickle

import pytest
import torch

from fairseq_expire.modules import LayerMemory, Memory
from fairseq_expire.modules.growable_buffer import GrowableBuffer
from fairseq_expire.modules.layer_memory import EMPTY_AGE


def layer(rows=2, held=3, width=4):
    hidden = torch.arange(rows * held * width, dtype=torch.float32).view(rows, held, width)
    return LayerMemory(hidden, torch.arange(held, 0, -1).repeat(rows, 1))


def test_kept_packs_each_row_to_the_right_in_order():
    memory = layer(held=4)
    keep = torch.tensor([[True, False, True, False], [False, False, False, True]])
    kept = memory.compact(keep, (2, 1))
    assert kept.age.tolist()[0] == [4, 2]
    assert kept.age.tolist()[1][1] == 1 and kept.age[1, 0] >= EMPTY_AGE
    assert torch.equal(kept.states[0], memory.states[0, [0, 2]])
    assert torch.equal(kept.states[1, 1], memory.states[1, 3])
    assert kept.occupied.tolist() == [[True, True], [False, True]]
    assert memory.age.tolist() == layer(held=4).age.tolist(), "a memory is never changed in place"


def test_kept_may_be_nothing():
    kept = layer().compact(torch.zeros(2, 3, dtype=torch.bool), (0, 0))
    assert kept.states.shape == (2, 0, 4)


def test_extended_ages_the_block_and_leaves_padding_out():
    padding = torch.tensor([[False, False], [False, True]])
    extended = layer().extended(torch.zeros(2, 2, 4), None, padding)
    assert extended.age.tolist()[0] == [3, 2, 1, 0, -1]
    assert extended.occupied.tolist()[1] == [True, True, True, True, False]


def test_aged_reordered_and_moved():
    memory = Memory((layer(), layer(held=1)))
    assert memory.advance(5).layers[0].age.tolist() == [[8, 7, 6], [8, 7, 6]]
    picked = memory.reorder(torch.tensor([1, 1, 0]))
    assert torch.equal(picked.layers[0].states, memory.layers[0].states[[1, 1, 0]])
    assert picked.layers[1].age.shape == (3, 1)
    halved = memory.to(dtype=torch.float16).layers[0]
    assert halved.states.dtype == torch.float16 and halved.age.dtype == torch.int64
    assert memory.sizes == (3, 1)
    assert memory.nbytes == (2 * 3 + 2 * 1) * (4 * 4 + 8)


def test_plain_tensors_and_back():
    memory = Memory((layer(), layer(held=1)))
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    restored = Memory.from_state_dict(torch.load(file, weights_only=True))
    assert len(restored.layers) == 2
    for ours, theirs in zip(memory.layers, restored.layers):
        assert torch.equal(ours.states, theirs.states) and torch.equal(ours.age, theirs.age)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: LayerMemory(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64)), r"\[2, 3, 4\].*\[2, 4\]"),
        (lambda: LayerMemory(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)), "states .B, M, W."),
        (lambda: LayerMemory(torch.zeros(2, 3, 4), torch.zeros(2, 3)), "int64"),
        (lambda: LayerMemory(torch.zeros(2, 3, 4), torch.ones(2, 3).long(), torch.zeros(2, 1, 1)), "a span each"),
        (lambda: Memory.from_state_dict({"0.states": torch.zeros(1, 1, 1)}), "not the state of a memory"),
        (lambda: Memory((layer(),)).check_fits(batch=2, num_layers=2, embed_dim=4), "1 layers, the model 2"),
        (lambda: Memory((layer(),)).check_fits(batch=8, num_layers=1, embed_dim=4), "2 rows, the block 8"),
        (lambda: Memory((layer(),)).check_fits(batch=2, num_layers=1, embed_dim=16), "width 4, the model needs 16"),
    ],
)
def test_what_does_not_fit(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def keys_and_values(rows=2, held=3, width=4):
    memory = layer(rows, held, 2 * width)
    return LayerMemory(memory.states, memory.age, torch.arange(rows * held, dtype=torch.float32).view(rows, held, 1))


def test_spans_go_with_keys_and_values():
    memory = keys_and_values(held=4)
    keep = torch.tensor([[True, False, True, False], [False, False, False, True]])
    kept = memory.compact(keep, (2, 1))
    assert kept.spans[0].flatten().tolist() == [0, 2] and kept.spans[1, 1].item() == 7
    assert kept.held == (2, 1)
    picked = Memory((memory,)).reorder(torch.tensor([1, 1]))
    assert torch.equal(picked.layers[0].spans, memory.spans[[1, 1]])
    assert Memory((memory,)).to(dtype=torch.float16).layers[0].spans.dtype == torch.float32
    restored = Memory.from_state_dict(Memory((memory,)).state_dict()).layers[0]
    assert torch.equal(restored.spans, memory.spans)
    assert memory.nbytes == 2 * 4 * (8 * 4 + 8 + 4)


def test_held_counts_from_the_oldest_in_use():
    age = torch.tensor([[EMPTY_AGE, EMPTY_AGE + 3, 5, 1], [9, 8, 7, EMPTY_AGE]])
    memory = LayerMemory(torch.arange(8.0).view(2, 4, 1), age)
    assert memory.held == (2, 4)
    assert memory.flatten().flatten().tolist() == [2, 3, 4, 5, 6, 7]


def test_copies_and_saved_ones_have_a_room_of_their_own():
    memory = LayerMemory(torch.randn(1, 0, 4), torch.zeros(1, 0, dtype=torch.int64), spans=torch.ones(1, 0, 1))
    states, spans = torch.randn(1, 3, 4), torch.ones(1, 3, 1)
    keep = torch.ones(1, 3, dtype=torch.bool)
    memory = memory.extended(states, spans, None).compact(keep, (3,), room=5)
    for copied in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        grown = copied.extended(torch.randn(1, 2, 4), spans[:, :2], None)
        assert torch.equal(grown.states[:, :3], states) and grown.room is not None
    assert memory.room.used == 3 and torch.equal(memory.states, states)


def test_room_is_used_once_and_never_what_others_see():
    data = torch.zeros(1, 6, 2)
    memory = LayerMemory(data[:, :3], torch.tensor([[3, 2, 1]]), torch.zeros(1, 3, 1), room=GrowableBuffer(data, 3))
    one, two = torch.ones(1, 2, 2), torch.full((1, 2, 2), 2.0)
    first = memory.extended(one, torch.zeros(1, 2, 1), None)
    second = memory.extended(two, torch.zeros(1, 2, 1), None)
    assert first.states.data_ptr() == data.data_ptr() and second.states.data_ptr() != data.data_ptr()
    assert first.states[0, 3:].flatten().tolist() == [1, 1, 1, 1]
    assert second.states[0, 3:].flatten().tolist() == [2, 2, 2, 2]
    too_long = first.extended(one, torch.zeros(1, 2, 1), None)
    assert too_long.room is None and too_long.states.shape == (1, 7, 2)
    assert first.nbytes == data.numel() * 4 + 5 * 8 + 5 * 4
