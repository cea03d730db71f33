"""The Python in the pages runs as it stands there, with a tiny model under the names that the pages use."""

import types

import doc_pages
import pytest
import small_checkpoints

from fairseq_expire import export

TEXT = "def main():\n    print('Once upon a time')\n" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with ``data-bin/mine``, ``checkpoints/mine`` and ``exported/mine``."""
    root = tmp_path_factory.mktemp("pages")
    (root / "data-bin").mkdir()
    (root / "checkpoints/mine").mkdir(parents=True)
    small_checkpoints.prepare(root, "bytes", TEXT).rename(root / "data-bin/mine")
    checkpoint = small_checkpoints.write_checkpoint(
        root / "checkpoints/mine/checkpoint_best.pt", root / "data-bin/mine"
    )
    export.main([str(checkpoint), str(root / "exported/mine")])
    return root


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_runs(page, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    names = {}
    for block in doc_pages.code_blocks(doc_pages.ROOT / page, "python"):
        exec(compile(block, page, "exec"), names)
    if page == "README.md":
        assert names["out"].hidden.shape == (2, 32, 64)
    else:
        assert names["later"].tokens_read == len("text may be cut anywhere as it arrives")
        assert names["score"].bits == pytest.approx(names["score"].bits_per_token * len("some text"))


def test_a_corpus_of_ones_own(tmp_path):
    """The script in docs/architecture.md."""
    [block] = doc_pages.section_blocks(doc_pages.ROOT / "docs/architecture.md", "Add a corpus", "python")
    module = types.ModuleType("corpus")
    exec(compile(block, "corpus.py", "exec"), module.__dict__)
    (tmp_path / "corpus.txt").write_text(TEXT)
    module.main(["--dest", str(tmp_path / "bin"), "--from", str(tmp_path / "corpus.txt"), "--no-verify"])
    assert {"dict.txt", "manifest.json", "train.bin", "valid.bin", "test.bin"} <= {
        path.name for path in (tmp_path / "bin").iterdir()
    }
    with pytest.raises(SystemExit):
        module.main(["--dest", str(tmp_path / "other"), "--from", str(tmp_path / "corpus.txt")])
