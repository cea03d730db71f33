"""The checkpoint that is loaded, and the memory files that are kept."""

import os

import pytest
import torch

from fairseq_expire.fairseq_patches.checkpoint_files import checkpoint_to_load, remove_leftovers
from fairseq_expire.inference.checkpoint_problems import problem_of


def checkpoint(path, updates, memory=None):
    extra = {"metrics": {}, "train_iterator": {"epoch": 1}, "val_loss": None, "AnyTask": {"memory": memory}}
    state = {"optimizer_history": [{"num_updates": updates}], "extra_state": extra, "model": {"w": torch.zeros(5000)}}
    torch.save(state, path)


def cut(path):
    path.write_bytes(path.read_bytes()[:10000])


def test_a_complete_or_missing_checkpoint_is_taken(tmp_path):
    last = str(tmp_path / "checkpoint_last.pt")
    checkpoint(tmp_path / "checkpoint_1_20.pt", 20)
    assert checkpoint_to_load(last, suffix="") == last
    checkpoint(tmp_path / "checkpoint_last.pt", 10)
    assert checkpoint_to_load(last, suffix="") == last
    # A format older than torch's zip archives: torch tells what is wrong.
    (tmp_path / "checkpoint_last.pt").write_bytes(b"\x80\x02\x8a\nl\xfc")
    assert checkpoint_to_load(last, suffix="") == last


@pytest.mark.parametrize("left", [0, 3, 4, 10000])
def test_the_complete_one_with_the_most_updates(tmp_path, caplog, left):
    for name, updates in {"_last": 30, "_best": 8, "_1_20": 20, "_1_10": 10, "_1_25": 25, "1": 5}.items():
        checkpoint(tmp_path / f"checkpoint{name}.pt", updates)
    os.utime(tmp_path / "checkpoint_1_20.pt", (0, 0))
    cut(tmp_path / "checkpoint_1_25.pt")
    (tmp_path / "checkpoint_last.pt").write_bytes((tmp_path / "checkpoint_last.pt").read_bytes()[:left])
    assert checkpoint_to_load(str(tmp_path / "checkpoint_last.pt"), suffix="") == str(tmp_path / "checkpoint_1_20.pt")
    assert f"cut short ({left} bytes are left): going on from the last complete checkpoint" in caplog.text
    with pytest.raises(ValueError, match=r"checkpoint_1_25.pt is cut short .*checkpoint_1_20.pt \(20 updates\)"):
        checkpoint_to_load(str(tmp_path / "checkpoint_1_25.pt"), suffix="")


def test_only_checkpoints_of_the_same_suffix_are_taken(tmp_path):
    checkpoint(tmp_path / "checkpoint_1_20.pt", 20)
    checkpoint(tmp_path / "checkpoint_last-a.pt", 30)
    cut(tmp_path / "checkpoint_last-a.pt")
    with pytest.raises(ValueError, match="no complete checkpoint lies beside it"):
        checkpoint_to_load(str(tmp_path / "checkpoint_last-a.pt"), suffix="-a")
    checkpoint(tmp_path / "checkpoint_1_10-a.pt", 10)
    assert checkpoint_to_load(str(tmp_path / "checkpoint_last-a.pt"), suffix="-a").endswith("checkpoint_1_10-a.pt")


def test_memory_files_without_a_checkpoint_are_deleted(tmp_path):
    files = ["memory_5_0000000a.0-of-1.pt", "memory_10_0000000b.0-of-2.pt", "memory_10_0000000b.1-of-2.pt",
             "memory_15_0000000c.0-of-1.pt"]  # fmt: skip
    others = ["other.tmp", "vectors.pt", "memory_bank.pt", "memory_5_a.pt"]
    for name in [*files, *others, "memory_20_0000000d.0-of-1.pt.unfinished", "checkpoint_1_20.pt.unfinished"]:
        (tmp_path / name).write_bytes(b"anything")
    checkpoint(tmp_path / "checkpoint_1_10.pt", 10, "memory_10_0000000b")
    checkpoint(tmp_path / "copied-by-hand.pt", 15, "memory_15_0000000c")
    checkpoint(tmp_path / "checkpoint1.pt", 18)
    remove_leftovers(tmp_path)
    kept = {*files[1:], "checkpoint_1_10.pt", "copied-by-hand.pt", "checkpoint1.pt", *others}
    assert {path.name for path in tmp_path.iterdir()} == kept
    # The same name, another checkpoint.
    checkpoint(tmp_path / "checkpoint_1_10.pt", 15, "memory_15_0000000c")
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.glob("memory_*")} == {files[3], *others[2:]}


def test_nothing_is_deleted_beside_an_unreadable_checkpoint(tmp_path, monkeypatch):
    checkpoint(tmp_path / "checkpoint_1_10.pt", 10, "memory_10_0000000b")
    (tmp_path / "memory_10_0000000b.0-of-1.pt").write_bytes(b"anything")
    may_read = os.access
    # Tests may run as root, who may read everything.
    monkeypatch.setattr(os, "access", lambda path, mode: "checkpoint" not in str(path) and may_read(path, mode))
    remove_leftovers(tmp_path)
    assert (tmp_path / "memory_10_0000000b.0-of-1.pt").exists()


def test_an_unreadable_checkpoint_is_explained(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"something")
    assert problem_of(str(path), PermissionError(13, "Permission denied")) == "cannot be read (Permission denied)"
    assert problem_of(str(path), EOFError("Ran out of input")).startswith("is no checkpoint, or is cut short (9 bytes)")
