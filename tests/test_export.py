"""The export command: the folder it makes, the one it replaces, and the ones it leaves alone."""

import os
import sys

import commands
import pytest
import torch

import fairseq_expire
from fairseq_expire import export
from fairseq_expire.inference import folder as folder_module


def refused(capsys, *arguments):
    """Returns the one line that the command fails with."""
    with pytest.raises(SystemExit) as stopped:
        export.main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m fairseq_expire.export: error: ")
    return line


def test_the_command(checkpoint, tmp_path):
    commands.run(sys.executable, "-m", "fairseq_expire.export", checkpoint, tmp_path / "out")
    assert fairseq_expire.load(tmp_path / "out").score("text").bits > 0


def test_only_an_export_is_replaced_and_only_with_force(checkpoint, data_bin, tmp_path, capsys):
    dest = tmp_path / "out"
    export.main([str(checkpoint), str(dest)])
    before = os.stat(dest / "config.json").st_ino
    assert "there already, with data in it; add --force" in refused(capsys, checkpoint, dest)
    assert os.stat(dest / "config.json").st_ino == before
    export.main([str(checkpoint), str(dest), "--force", "--data", str(data_bin)])
    assert os.stat(dest / "config.json").st_ino != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("")
    for options in ([], ["--force"]):
        assert "there already, and not data with a config.json" in refused(capsys, checkpoint, other, *options)
    assert (other / "precious").exists()


def test_an_interrupted_export_leaves_no_folder(checkpoint, tmp_path, monkeypatch):
    """The next run makes it whole."""

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(folder_module.json, "dumps", killed)
        with pytest.raises(KeyboardInterrupt):
            export.export(checkpoint, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    export.export(checkpoint, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert fairseq_expire.load(tmp_path / "out").score("text").bits > 0


def test_a_folder_of_another_program_is_left_alone(checkpoint, tmp_path, capsys):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "dict.txt").write_text("{}")
    assert "out.partial: not empty, and no unfinished data" in refused(capsys, checkpoint, tmp_path / "out")
    assert len(list((tmp_path / "out.partial").iterdir())) == 1


def test_errors_are_one_line(checkpoint, tmp_path, capsys):
    assert "none.pt: not there" in refused(capsys, tmp_path / "none.pt", tmp_path / "out")
    assert "no dict.txt in" in refused(capsys, checkpoint, tmp_path / "out", "--data", tmp_path)
    (tmp_path / "file").write_text("")
    assert "file: there already" in refused(capsys, checkpoint, tmp_path / "file")
    assert "file/out: cannot be written" in refused(capsys, checkpoint, tmp_path / "file" / "out")
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, "model": {}}, tmp_path / "empty.pt")
    assert "empty.pt: the weights are not those of its options" in refused(
        capsys, tmp_path / "empty.pt", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
