"""Memory files: a memory is read as it was written, or one message says why it cannot be read."""

import re

import pytest
import torch

from fairseq_expire.modules import Compressive, ExpireSpan, Memory, MemoryTransformer
from fairseq_expire.streaming.memory_files import name_of, new_name, path_of, read_memory, write_memory

PLACE = {"process": 1, "processes": 2}


def memory_after_training(policy):
    """Returns the memory after a few blocks, of rows of which one has ended."""
    torch.manual_seed(0)
    stack = MemoryTransformer(
        embed_dim=8, num_heads=2, ffn_dim=16, num_layers=2, position_range=4, policy=policy, pre_norm=True
    )
    memory = None
    for _ in range(3):
        padding = torch.zeros(3, 5, dtype=torch.bool)
        padding[1, 3:] = True
        memory = stack(torch.randn(3, 5, 8), memory, padding=padding).memory
    return memory


@pytest.mark.parametrize(
    "policy",
    [
        lambda: ExpireSpan(embed_dim=8, max_span=12, ramp=2, span_init=6),
        lambda: Compressive(max_span=4, compressed_size=2, rate=2),
    ],
    ids=["expire", "compressive"],
)
def test_a_memory_is_read_as_it_was_written(tmp_path, policy):
    """Every bit and every slot counts, since attention sums in the order of slots."""
    memory = memory_after_training(policy)
    write_memory(tmp_path, "memory_3_ab", {"memories": {0: memory.state_dict()}}, **PLACE)
    read = Memory.from_state_dict(read_memory(tmp_path, "memory_3_ab", **PLACE)["memories"][0])
    for layer, other in zip(read.layers, memory.layers):
        assert torch.equal(layer.age, other.age) and layer.fields.keys() == other.fields.keys()
        for name, tensor in layer.fields.items():
            assert torch.equal(tensor, other.fields[name]) and tensor.stride() == other.fields[name].stride()
        assert (layer.counts, layer.oldest, layer.tokens_read) == (other.counts, other.oldest, other.tokens_read)


def test_names_are_new():
    name = new_name(40)
    assert re.fullmatch("memory_40_[0-9a-f]{8}", name) and new_name(40) != name


def test_one_file_for_each_process(tmp_path):
    write_memory(tmp_path, "memory_3_ab", {"memories": {}}, **PLACE)
    (path,) = tmp_path.iterdir()
    assert path.name == "memory_3_ab.1-of-2.pt" and name_of(path) == "memory_3_ab"
    assert read_memory(tmp_path, "memory_3_ab", **PLACE) == {"memories": {}}


def test_the_error_names_the_folder(tmp_path):
    with pytest.raises(OSError, match=r"nowhere/memory_3_ab.1-of-2.pt"):
        write_memory(tmp_path / "nowhere", "memory_3_ab", {}, **PLACE)


def flipped(content):
    content[len(content) // 2] ^= 1
    return content


@pytest.mark.parametrize(
    "harm", [lambda content: content[:-100], flipped, lambda content: b"", lambda content: b"no memory" * 100]
)
def test_damage_is_found(tmp_path, harm):
    path = path_of(tmp_path, "memory_3_ab", **PLACE)
    write_memory(tmp_path, "memory_3_ab", {"states": torch.zeros(1000)}, **PLACE)
    path.write_bytes(harm(bytearray(path.read_bytes())))
    with pytest.raises(ValueError, match=r"memory_3_ab.1-of-2.pt is damaged"):
        read_memory(tmp_path, "memory_3_ab", **PLACE)


def test_a_file_without_permission(tmp_path, monkeypatch):
    """Simulated, since the user who runs the tests may read everything."""
    write_memory(tmp_path, "memory_3_ab", {}, **PLACE)

    def denied(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("io.open", denied)
    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(ValueError, match=r"memory_3_ab.1-of-2.pt cannot be read \(Permission denied\)"):
        read_memory(tmp_path, "memory_3_ab", **PLACE)


def test_missing_files_and_other_files(tmp_path):
    with pytest.raises(ValueError, match=r"memory_3_ab.1-of-2.pt is missing"):
        read_memory(tmp_path, "memory_3_ab", **PLACE)
    write_memory(tmp_path, "memory_3_cd", {}, **PLACE)
    path_of(tmp_path, "memory_3_cd", **PLACE).rename(path_of(tmp_path, "memory_3_ab", **PLACE))
    with pytest.raises(ValueError, match=r"memory_3_ab.1-of-2.pt holds the memory of another run"):
        read_memory(tmp_path, "memory_3_ab", **PLACE)
    torch.save([1], path_of(tmp_path, "memory_3_ab", **PLACE))
    with pytest.raises(ValueError, match=r"memory_3_ab.1-of-2.pt is damaged"):
        read_memory(tmp_path, "memory_3_ab", **PLACE)
