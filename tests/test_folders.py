from pathlib import Path

import pytest

from fairseq_expire.folders import new_folder


def fill(folder, text):
    (folder / "manifest.json").write_text(text)


def everything_in(folder):
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
def test_an_error_leaves_what_was_there_and_only_wrong_input_ends_the_work(tmp_path, error, force):
    dest = tmp_path / "a"
    if force:
        dest.mkdir()
        fill(dest, "old")
    with pytest.raises(error), new_folder(dest, force=force) as folder:
        fill(folder, "new")
        raise error
    unfinished = [] if error is ValueError else ["a.partial", "a.partial/manifest.json"]
    assert everything_in(tmp_path) == (["a", *unfinished, "a/manifest.json"] if force else unfinished)
    assert not force or (dest / "manifest.json").read_text() == "old"


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
        with pytest.raises(ValueError, match="not data with a manifest.json"), new_folder(tmp_path / name, force=True):
            pytest.fail("must not be entered")
    assert everything_in(tmp_path) == ["file", "folder", "folder/thesis.tex"]


def test_an_empty_folder_is_in_nobodys_way_and_an_unfinished_one_is_gone_on_with(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a.partial").mkdir()
    (tmp_path / "a.partial" / "train.bin").write_text("unfinished")
    with new_folder(tmp_path / "a") as folder:
        assert everything_in(folder) == ["train.bin"]
        fill(folder, "new")
    assert everything_in(tmp_path) == ["a", "a/manifest.json", "a/train.bin"]


def test_two_runs_do_not_write_the_same(tmp_path):
    with new_folder(tmp_path / "a") as folder:
        with pytest.raises(RuntimeError, match="a.partial: another run is writing there"), new_folder(tmp_path / "a"):
            pytest.fail("must not be entered")
        fill(folder, "first")
    assert (tmp_path / "a" / "manifest.json").read_text() == "first"


def test_a_kill_while_data_is_replaced_loses_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    fill(tmp_path / "a", "old")

    class Killed(BaseException):
        pass

    rename = Path.rename

    def killed(self, target):
        if self.name == "a.partial":
            raise Killed
        rename(self, target)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        with new_folder(tmp_path / "a", force=True) as folder:
            fill(folder, "new")
            patch.setattr(Path, "rename", killed)
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="add --force"), new_folder(tmp_path / "a"):
        pytest.fail("must not be entered")
    assert (tmp_path / "a" / "manifest.json").read_text() == "old"
    with new_folder(tmp_path / "a", force=True) as folder:
        assert (folder / "manifest.json").read_text() == "new"
    assert everything_in(tmp_path) == ["a", "a/manifest.json"]
    assert (tmp_path / "a" / "manifest.json").read_text() == "new"


def test_folders_with_names_like_ours_are_left_alone(tmp_path):
    for name in ("a.replaced", "a.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("x")
    with pytest.raises(ValueError, match="wrong"), new_folder(tmp_path / "a"):
        raise ValueError("wrong")
    assert everything_in(tmp_path) == ["a.partial", "a.partial/mine", "a.replaced", "a.replaced/mine"]


def test_a_mistake_does_not_cost_what_an_earlier_run_made(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "a") as folder:
        (folder / "train.bin").write_text("hours of work")
        raise KeyboardInterrupt
    with pytest.raises(ValueError), new_folder(tmp_path / "a"):
        raise ValueError("no such file")
    assert (tmp_path / "a.partial" / "train.bin").read_text() == "hours of work"


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
        pytest.raises(ValueError, match="file/a: cannot be written .*choose another folder"),
        new_folder(tmp_path / "file" / "a"),
    ):
        pytest.fail("must not be entered")
