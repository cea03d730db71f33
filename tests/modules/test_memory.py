import io

import pytest
import torch

from fairseq_expire.modules import LayerMemory, Memory
from fairseq_expire.modules.memory import EMPTY_AGE


def layer(rows=2, held=3, width=4):
    hidden = torch.arange(rows * held * width, dtype=torch.float32).view(rows, held, width)
    return LayerMemory(hidden, torch.arange(held, 0, -1).repeat(rows, 1))


def test_kept_packs_each_row_to_the_right_in_order():
    memory = layer(held=4)
    keep = torch.tensor([[True, False, True, False], [False, False, False, True]])
    kept = memory.kept(keep, 2)
    assert kept.age.tolist()[0] == [4, 2]
    assert kept.age.tolist()[1][1] == 1 and kept.age[1, 0] >= EMPTY_AGE
    assert torch.equal(kept.hidden[0], memory.hidden[0, [0, 2]])
    assert torch.equal(kept.hidden[1, 1], memory.hidden[1, 3])
    assert kept.occupied.tolist() == [[True, True], [False, True]]
    assert memory.age.tolist() == layer(held=4).age.tolist(), "a memory is never changed in place"


def test_kept_may_be_nothing():
    kept = layer().kept(torch.zeros(2, 3, dtype=torch.bool), 0)
    assert kept.hidden.shape == (2, 0, 4)


def test_extended_ages_the_block_and_leaves_padding_out():
    padding = torch.tensor([[False, False], [False, True]])
    extended = layer().extended(torch.zeros(2, 2, 4), padding)
    assert extended.age.tolist()[0] == [3, 2, 1, 0, -1]
    assert extended.occupied.tolist()[1] == [True, True, True, True, False]


def test_aged_reordered_and_moved():
    memory = Memory((layer(), layer(held=1)))
    assert memory.aged(5).layers[0].age.tolist() == [[8, 7, 6], [8, 7, 6]]
    picked = memory.reorder(torch.tensor([1, 1, 0]))
    assert torch.equal(picked.layers[0].hidden, memory.layers[0].hidden[[1, 1, 0]])
    assert picked.layers[1].age.shape == (3, 1)
    halved = memory.to(dtype=torch.float16).layers[0]
    assert halved.hidden.dtype == torch.float16 and halved.age.dtype == torch.int64
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
        assert torch.equal(ours.hidden, theirs.hidden) and torch.equal(ours.age, theirs.age)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: LayerMemory(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64)), r"\[2, 3, 4\].*\[2, 4\]"),
        (lambda: LayerMemory(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)), "hidden .B, M, D."),
        (lambda: LayerMemory(torch.zeros(2, 3, 4), torch.zeros(2, 3)), "int64"),
        (lambda: Memory.from_state_dict({"0.hidden": torch.zeros(1, 1, 1)}), "not the state of a memory"),
        (lambda: Memory((layer(),)).check_fits(batch=2, num_layers=2, embed_dim=4), "1 layers, the model 2"),
        (lambda: Memory((layer(),)).check_fits(batch=8, num_layers=1, embed_dim=4), "2 rows, the block 8"),
        (lambda: Memory((layer(),)).check_fits(batch=2, num_layers=1, embed_dim=16), "width 4, the model 16"),
    ],
)
def test_what_does_not_fit(make, words):
    with pytest.raises(ValueError, match=words):
        make()
