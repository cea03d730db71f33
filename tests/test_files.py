"""Folders that appear when they are complete, whatever ends the run."""

import functools
from pathlib import Path

import killable
import pytest

from fairseq_expire import files

MARK = "manifest.json"
new_folder = functools.partial(files.new_folder, mark=MARK)


def fill(folder, text):
    (folder / MARK).write_text(text)


def everything_in(folder):
    """The relative paths of all files and folders."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_it_appears_at_the_end(tmp_path):
    dest = tmp_path / "a" / "b"
    with new_folder(dest) as folder:
        assert folder == tmp_path / "a" / "b.partial"
        fill(folder, "new")
        assert not dest.exists()
    assert everything_in(tmp_path) == ["a", "a/b", "a/b/manifest.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("force", [False, True], ids=["nothing_there", "data_there"])
def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path, error, force):
    dest = tmp_path / "a" / "b"
    if force:
        dest.mkdir(parents=True)
        fill(dest, "old")
    with pytest.raises(error), new_folder(dest, force=force) as folder:
        fill(folder, "new")
        (folder / "sub").mkdir()
        raise error
    assert everything_in(tmp_path) == (["a", "a/b", "a/b/manifest.json"] if force else [])
    assert not force or (dest / MARK).read_text() == "old"


@pytest.mark.parametrize("force", [False, True], ids=["nothing_there", "data_there"])
def test_a_kill_leaves_what_was_there_and_the_next_run_removes_the_rest(tmp_path, force):
    dest = tmp_path / "a"
    if force:
        dest.mkdir()
        fill(dest, "old")

    def run():
        with new_folder(dest, force=force) as folder:
            fill(folder, "new")
            (folder / "sub").mkdir()
            killable.kill_this_process()

    assert killable.run(run)
    assert dest.exists() == force and (tmp_path / "a.partial" / MARK).exists()
    assert not force or (dest / MARK).read_text() == "old"
    with new_folder(dest, force=force) as folder:
        assert [path.name for path in folder.iterdir()] == [files.UNFINISHED]
        fill(folder, "next")
    assert everything_in(tmp_path) == ["a", "a/manifest.json"] and (dest / MARK).read_text() == "next"


def test_force_replaces_data_with_all_that_is_in_it(tmp_path):
    dest = tmp_path / "a"
    dest.mkdir()
    fill(dest, "old")
    (dest / "test.bin").write_text("old")
    with pytest.raises(ValueError, match="a: there already, with data in it; add --force"), new_folder(dest):
        pytest.fail("must not be entered")
    with new_folder(dest, force=True) as folder:
        fill(folder, "new")
        assert (dest / "manifest.json").read_text() == "old"
    assert everything_in(tmp_path) == ["a", "a/manifest.json"]
    assert (dest / "manifest.json").read_text() == "new"


def test_force_replaces_nothing_but_data(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("x")
    for name in ("file", "folder", "."):
        with pytest.raises(ValueError, match=r"not data with a manifest.json"), new_folder(tmp_path / name, force=True):
            pytest.fail("must not be entered")
    assert everything_in(tmp_path) == ["file", "folder", "folder/thesis.tex"]


def test_empty_folders_are_used(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a.partial").mkdir()
    with new_folder(tmp_path / "a") as folder:
        fill(folder, "new")
    assert everything_in(tmp_path) == ["a", "a/manifest.json"]


def test_two_runs_do_not_write_the_same(tmp_path):
    with new_folder(tmp_path / "a") as folder:
        with pytest.raises(RuntimeError, match=r"a.partial: another run is writing there"), new_folder(tmp_path / "a"):
            pytest.fail("must not be entered")
        fill(folder, "first")
    assert (tmp_path / "a" / "manifest.json").read_text() == "first"


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_while_data_is_replaced_loses_nothing(tmp_path, monkeypatch, step, after):
    """Killed before or after each step: the old data is moved, the new data gets its name, the old data is removed."""
    dest = tmp_path / "a"
    dest.mkdir()
    fill(dest, "old")
    (dest / "only_old").touch()
    steps = iter(range(9))

    def killing(function):
        def call(*arguments, **options):
            now = next(steps)
            if now == step and not after:
                killable.kill_this_process()
            function(*arguments, **options)
            if now == step:
                killable.kill_this_process()

        return call

    def run():
        with new_folder(dest, force=True) as folder:
            fill(folder, "new")
            monkeypatch.setattr(Path, "rename", killing(Path.rename))
            monkeypatch.setattr(files.shutil, "rmtree", killing(files.shutil.rmtree))

    assert killable.run(run)
    expected = "new" if (step, after) > (1, False) else "old"
    with pytest.raises(ValueError, match="add --force"), new_folder(dest):
        pytest.fail("must not be entered")
    if expected == "old" and (step, after) > (0, False):
        # This run has put it back.
        assert not (tmp_path / "a.partial").exists()
    assert (dest / MARK).read_text() == expected and (dest / "only_old").exists() == (expected == "old")
    with new_folder(dest, force=True) as folder:
        fill(folder, "next")
    assert everything_in(tmp_path) == ["a", "a/manifest.json"] and (dest / MARK).read_text() == "next"


def test_folders_of_others_are_left_alone(tmp_path):
    for name in ("a.replaced", "a.partial", "b.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("x")
    before = everything_in(tmp_path)
    with pytest.raises(RuntimeError, match=r"a.partial: not empty, and no unfinished data"), new_folder(tmp_path / "a"):
        pytest.fail("must not be entered")
    assert everything_in(tmp_path) == before
    with new_folder(tmp_path / "b") as folder:
        fill(folder, "new")
    assert everything_in(tmp_path) == sorted([*before, "b", "b/manifest.json"])


def test_data_that_comes_in_the_meantime_is_kept(tmp_path):
    dest = tmp_path / "a"
    with pytest.raises(ValueError, match="add --force"), new_folder(dest) as folder:
        fill(folder, "second")
        dest.mkdir()
        fill(dest, "first")
    assert (dest / "manifest.json").read_text() == "first"


def test_a_link_goes_on_pointing_to_the_folder(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with new_folder(tmp_path / "link") as folder:
        fill(folder, "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "a" / "manifest.json").read_text() == "new"


def test_a_place_that_cannot_hold_a_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(ValueError, match=r"file/a: cannot be written .*choose another folder"),
        new_folder(tmp_path / "file" / "a"),
    ):
        pytest.fail("must not be entered")
