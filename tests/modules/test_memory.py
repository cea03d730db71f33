"""The memory as a value: each operation by example."""

import copy
import io
import pickle

import pytest
import torch

from fairseq_expire.modules import LayerMemory, Memory
from fairseq_expire.modules.growable_buffer import GrowableBuffer
from fairseq_expire.modules.memory import EMPTY_AGE


def of_inputs(rows=2, slots=3, width=4):
    """A layer's memory of inputs that are all different."""
    inputs = torch.arange(rows * slots * width, dtype=torch.float32).view(rows, slots, width)
    return LayerMemory.from_tensors(age=torch.arange(slots, 0, -1).repeat(rows, 1), inputs=inputs)


def of_keys(rows=2, slots=3, width=4):
    """A layer's memory of keys, values and spans that are all different."""
    keys = torch.arange(rows * slots * width, dtype=torch.float32).view(rows, slots, width)
    return LayerMemory.from_tensors(
        age=torch.arange(slots, 0, -1).repeat(rows, 1), keys=keys, values=-keys, spans=keys[..., :1] / 10
    )


KEEP = torch.tensor([[True, False, True, False], [False, False, False, True]])


def test_compact_moves_each_row_to_the_right_in_order():
    memory = of_inputs(slots=4)
    kept = memory.compact(KEEP, (2, 1))
    assert kept.age.tolist()[0] == [4, 2]
    assert kept.age.tolist()[1][1] == 1 and kept.age[1, 0] >= EMPTY_AGE
    assert torch.equal(kept.inputs[0], memory.inputs[0, [0, 2]])
    assert torch.equal(kept.inputs[1, 1], memory.inputs[1, 3])
    assert kept.occupied.tolist() == [[True, True], [False, True]]
    assert kept.counts == (2, 1) and kept.oldest == 4
    assert memory.age.tolist() == of_inputs(slots=4).age.tolist(), "a memory is never changed in place"


def test_compact_may_leave_nothing():
    kept = of_inputs().compact(torch.zeros(2, 3, dtype=torch.bool), (0, 0))
    assert kept.inputs.shape == (2, 0, 4) and kept.oldest == 0


def test_every_field_goes_with_its_slot():
    memory = of_keys(slots=4)
    kept = memory.compact(KEEP, (2, 1))
    picked = Memory((memory,)).reorder(torch.tensor([1, 1])).layers[0]
    restored = Memory.from_state_dict(Memory((memory,)).state_dict()).layers[0]
    for name, tensor in memory.fields.items():
        assert torch.equal(kept.fields[name][0], tensor[0, [0, 2]]) and torch.equal(
            kept.fields[name][1, 1], tensor[1, 3]
        )
        assert torch.equal(picked.fields[name], tensor[[1, 1]])
        assert torch.equal(restored.fields[name], tensor)


def test_append_ages_a_block_and_leaves_padding_out():
    padding = torch.tensor([[False, False], [False, True]])
    memory = of_inputs()
    longer = memory.append(memory.block_age(2, padding), inputs=torch.zeros(2, 2, 4))
    assert longer.age.tolist()[0] == [3, 2, 1, 0, -1]
    assert longer.occupied.tolist()[1] == [True, True, True, True, False]
    assert longer.counts == (5, 5) and longer.min_distance is None


def test_append_fills_in_the_minimum_distance():
    memory = of_inputs()
    age, inputs = memory.block_age(1, None), torch.zeros(2, 1, 4)
    longer = memory.append(age, inputs=inputs, min_distance=torch.tensor([[7], [7]]))
    assert longer.min_distance.tolist() == [[1, 1, 1, 7]] * 2
    assert longer.append(age, inputs=inputs).min_distance.tolist() == [[1, 1, 1, 7, 1]] * 2


def test_flatten_and_unflatten():
    age = torch.tensor([[EMPTY_AGE, EMPTY_AGE + 3, 5, 1], [9, 8, 7, EMPTY_AGE]])
    inputs = torch.arange(8.0).view(2, 4, 1)
    memory = LayerMemory.from_tensors(age=age, inputs=inputs)
    # The slots in use begin with the oldest memory.
    assert memory.counts == (2, 4) and memory.oldest == 9
    flat = memory.flatten(inputs)
    assert flat.flatten().tolist() == [2, 3, 4, 5, 6, 7]
    block = torch.tensor([[[10.0]], [[11.0]]])
    assert memory.unflatten(flat, block).squeeze(-1).tolist() == [[0, 0, 2, 3, 10], [4, 5, 6, 7, 11]]


def test_advanced_reordered_and_moved():
    memory = Memory((of_inputs(), of_inputs(slots=1)))
    advanced = memory.advance(5).layers[0]
    assert advanced.age.tolist() == [[8, 7, 6], [8, 7, 6]] and advanced.tokens_read == (5, 5)
    picked = memory.reorder(torch.tensor([1, 1, 0]))
    assert torch.equal(picked.layers[0].inputs, memory.layers[0].inputs[[1, 1, 0]])
    assert picked.layers[1].age.shape == (3, 1)
    halved = memory.to(dtype=torch.float16).layers[0]
    assert halved.inputs.dtype == torch.float16 and halved.age.dtype == torch.int64
    assert memory.sizes == (3, 1)
    assert memory.nbytes == (2 * 3 + 2 * 1) * (4 * 4 + 8)
    assert of_keys().nbytes == 2 * 3 * (2 * 4 * 4 + 4 + 8)


def test_spans_and_distances_keep_their_precision():
    one = torch.ones(2, 1, dtype=torch.int64)
    new = {"keys": torch.zeros(2, 1, 4), "values": torch.zeros(2, 1, 4), "spans": torch.zeros(2, 1, 1)}
    memory = of_keys().append(one, **new, min_distance=one)
    moved = memory.to(dtype=torch.float16)
    assert (moved.keys.dtype, moved.values.dtype) == (torch.float16, torch.float16)
    assert (moved.spans.dtype, moved.min_distance.dtype) == (torch.float32, torch.int64)


def test_plain_tensors_and_back():
    memory = Memory((of_inputs(), of_inputs(slots=1)))
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    restored = Memory.from_state_dict(torch.load(file, weights_only=True))
    assert len(restored.layers) == 2
    for before, after in zip(memory.layers, restored.layers):
        assert torch.equal(before.inputs, after.inputs) and torch.equal(before.age, after.age)
        assert (before.counts, before.oldest, before.tokens_read) == (after.counts, after.oldest, after.tokens_read)


def test_states_that_are_refused():
    with pytest.raises(ValueError, match=r"not the state of a memory: expected names such as '0\.age' and '0.inputs'"):
        Memory.from_state_dict({"0.inputs": torch.zeros(1, 1, 1)})
    # The names before fields had their own.
    old = {"0.states": torch.zeros(1, 1, 4), "0.age": torch.ones(1, 1, dtype=torch.int64), "0.read": torch.tensor(1)}
    with pytest.raises(
        ValueError, match=r"written by an earlier version of fairseq_expire, .* start without it, or use"
    ):
        Memory.from_state_dict(old)


def test_tensors_that_do_not_fit():
    age, keys = torch.ones(1, 2, dtype=torch.int64), torch.zeros(1, 2, 4)
    for tensors, words in [
        ({"age": age, "inputs": keys[:, :1]}, r"one slot for each age: got age \[1, 2\] and inputs \[1, 1, 4\]"),
        ({"age": age.int(), "inputs": keys}, "expected an int64 tensor, got torch.int32"),
        ({"age": age, "keys": keys, "values": keys}, "keys, values and spans: got keys, values"),
        ({"age": age}, "keys, values and spans: got neither"),
    ]:
        with pytest.raises(ValueError, match=words):
            LayerMemory.from_tensors(**tensors)


def test_models_that_a_memory_does_not_fit():
    shape = {"batch": 2, "num_layers": 1, "embed_dim": 4, "keeps_inputs": False}
    inputs, keys = Memory((of_inputs(),)), Memory((of_keys(),))
    inputs.check_fits(**shape)
    inputs.check_fits(**{**shape, "keeps_inputs": True})
    keys.check_fits(**shape)
    for memory, change, words in [
        (inputs, {"num_layers": 2}, "has 1 layers, the model 2"),
        (inputs, {"batch": 3}, "has 2 rows, the block 3"),
        (inputs, {"embed_dim": 5}, "inputs of width 4, the model needs 5"),
        (keys, {"embed_dim": 5}, "keys of width 4, the model needs 5"),
        (keys, {"keeps_inputs": True}, "stores keys, values, spans, and the model needs keys and values with inputs"),
    ]:
        with pytest.raises(ValueError, match=words):
            memory.check_fits(**{**shape, **change})


def test_memories_that_cannot_be_joined():
    memory = Memory((of_inputs(),))
    for other, words in [
        (Memory((of_keys(),)), "the same fields, got inputs .*; keys"),
        (Memory(memory.layers * 2), r"the same layers, got \[1, 2\]"),
    ]:
        with pytest.raises(ValueError, match=words):
            Memory.cat([memory, other])


def test_copies_and_saved_ones_have_a_buffer_of_their_own():
    keys = torch.randn(1, 3, 4)
    memory = LayerMemory.from_tensors(
        age=torch.tensor([[3, 2, 1]]), keys=keys, values=keys, spans=torch.ones(1, 3, 1)
    ).compact(torch.ones(1, 3, dtype=torch.bool), (3,), room=5)
    new = {"keys": torch.randn(1, 2, 4), "values": torch.randn(1, 2, 4), "spans": torch.ones(1, 2, 1)}
    for copied in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        grown = copied.append(copied.block_age(2, None), **new)
        assert torch.equal(grown.keys[:, :3], keys) and torch.equal(grown.keys[:, 3:], new["keys"])
        assert grown.buffer is copied.buffer is not None
    assert memory.buffer.used == 3 and torch.equal(memory.keys, keys)


def test_a_buffer_is_used_once_and_never_where_others_look():
    def fields(value, count):
        return {
            "keys": torch.full((1, count, 2), value),
            "values": torch.zeros(1, count, 2),
            "spans": torch.ones(1, count, 1),
        }

    data = fields(0.0, 6)
    memory = LayerMemory(
        age=torch.tensor([[3, 2, 1]]), **{name: tensor[:, :3] for name, tensor in data.items()}, counts=(3,), oldest=3,
        tokens_read=(3,), buffer=GrowableBuffer(data, 3),
    )  # fmt: skip
    age = memory.block_age(2, None)
    first, second = (memory.append(age, **fields(value, 2)) for value in (1.0, 2.0))
    assert first.keys.data_ptr() == data["keys"].data_ptr() != second.keys.data_ptr()
    assert first.keys[0, 3:].flatten().tolist() == [1, 1, 1, 1]
    assert second.keys[0, 3:].flatten().tolist() == [2, 2, 2, 2]
    too_long = first.append(age, **fields(1.0, 2))
    assert too_long.buffer is None and too_long.keys.shape == (1, 7, 2)
    assert first.nbytes == 6 * (2 + 2 + 1) * 4 + 5 * 8
    more = first.append(age[:, :1], **fields(1.0, 1), min_distance=torch.tensor([[2]]))
    assert more.buffer is None and more.min_distance.tolist() == [[1, 1, 1, 1, 1, 2]]
