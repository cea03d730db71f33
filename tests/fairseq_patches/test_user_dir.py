"""--user-dir by every path and name of the package, in fresh processes; and two copies of it, which are refused in a sentence."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fairseq_expire

ROOT = Path(__file__).parents[1]

# fairseq_expire and a copy lie in `one/` and `two/`; links lead to the first.
IMPORTS = """
import argparse, sys
from fairseq.utils import import_user_module
{before}
for user_dir in {user_dirs!r}:
    import_user_module(argparse.Namespace(user_dir=user_dir))
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY
import fairseq_expire
assert "expire_span_lm" in ARCH_MODEL_REGISTRY
assert TASK_REGISTRY["memory_caching_lm"] is sys.modules["fairseq_expire.tasks.memory_caching_lm"].MemoryCachingLMTask
print(fairseq_expire.__file__)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copies")
    for name in ("one/fairseq_expire", "two/fairseq_expire"):
        shutil.copytree(ROOT / "fairseq_expire", folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "linked").symlink_to(folder / "one")
    (folder / "other_name").symlink_to(folder / "one/fairseq_expire")
    (folder / "second_name").symlink_to("other_name")
    shutil.copytree(folder / "one/fairseq_expire", folder / "renamed")
    return folder


def imported(folder, *user_dirs, before="", installed="one"):
    """The process that gave fairseq these ``--user-dir``, one after the other, with the package of a folder on the path."""
    environment = {**os.environ, "PYTHONPATH": str(folder / installed), "CUDA_VISIBLE_DEVICES": ""}
    # Without the checkout that an editable install puts on the path.
    before = f"sys.path.remove({str(ROOT)!r}) if {str(ROOT)!r} in sys.path else None\n{before}"
    script = IMPORTS.format(before=before, user_dirs=user_dirs)
    return subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("before", ["", "import fairseq_expire"], ids=["first", "imported_before"])
@pytest.mark.parametrize(
    "user_dirs",
    [
        pytest.param(["one/fairseq_expire/"], id="relative_with_a_slash"),
        pytest.param(["one/../one/./fairseq_expire"], id="relative_with_dots"),
        pytest.param(["linked/fairseq_expire"], id="a_link_above"),
        pytest.param(["other_name"], id="a_link_of_another_name"),
        pytest.param(["second_name/"], id="a_link_to_a_link"),
        pytest.param(["fairseq_expire"], id="beside_fairseq"),
        pytest.param(
            ["other_name", "linked/fairseq_expire", "second_name", "one/fairseq_expire", "fairseq_expire"],
            id="one_after_the_other",
        ),
    ],
)
def test_the_same_package_registers_once(folder, user_dirs, before):
    done = imported(folder, *user_dirs, before=before)
    assert done.returncode == 0, done.stderr
    assert os.path.realpath(done.stdout.strip()) == str(folder / "one/fairseq_expire/__init__.py")


@pytest.mark.parametrize(
    "user_dirs, before",
    [
        pytest.param(["renamed"], "", id="another_name"),
        pytest.param(["renamed"], "import fairseq_expire", id="another_name_after_an_import"),
        pytest.param(["two/fairseq_expire"], "import fairseq_expire", id="the_same_name_after_an_import"),
        pytest.param(["other_name", "two/fairseq_expire"], "", id="the_same_name_after_a_link"),
        pytest.param(["one/fairseq_expire", "renamed"], "", id="both_given"),
    ],
)
def test_two_copies_are_named_in_a_sentence(folder, user_dirs, before):
    done = imported(folder, *user_dirs, before=before)
    *_, last = done.stderr.strip().splitlines()
    assert last.startswith(
        f"ImportError: --user-dir {folder / user_dirs[-1]} is a copy of fairseq_expire beside the one in {folder / 'one'}"
    )
    assert f"give --user-dir {folder / 'one/fairseq_expire'}" in last


@pytest.mark.parametrize("user_dir", ["renamed", "renamed/"])
def test_a_renamed_folder_is_the_package_where_there_is_no_other(folder, user_dir):
    done = imported(folder, user_dir, installed="nowhere")
    assert done.returncode == 0, done.stderr
    assert os.path.realpath(done.stdout.strip()) == str(folder / "renamed/__init__.py")


def test_the_copy_that_is_named_first_is_the_one(folder):
    done = imported(folder, "two/fairseq_expire")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "two/fairseq_expire/__init__.py")


def test_a_user_dir_of_another_package_may_build_on_this_one(folder, tmp_path):
    (tmp_path / "my_models").mkdir()
    (tmp_path / "my_models/__init__.py").write_text("import fairseq_expire\n")
    done = imported(folder, str(tmp_path / "my_models"), "other_name")
    assert done.returncode == 0, done.stderr


def in_folder(*arguments, cwd):
    """Python in a folder, with what is installed alone."""
    environment = {**os.environ, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def test_user_dir_is_found_from_any_folder(tmp_path):
    # Only the refusal of an unknown architecture lists those that are registered.
    # -P: without it `-m` would put the current folder on sys.path, which the fairseq-train script does not.
    done = in_folder(
        "-P", "-m", "fairseq_cli.train", "--user-dir", "fairseq_expire", "--arch", "no_such_arch", cwd=tmp_path
    )
    assert "invalid choice: 'no_such_arch'" in done.stderr
    assert "'expire_span_lm'" in done.stderr


def test_user_dir_may_be_imported_already(tmp_path):
    package = Path(fairseq_expire.__file__).parent
    script = f"""
import argparse, os
import fairseq_expire
from fairseq.utils import import_user_module

for folder, user_dir in [
    ({str(tmp_path)!r}, "fairseq_expire"),
    ({str(tmp_path)!r}, {str(package)!r}),
    ({str(package.parent)!r}, "fairseq_expire"),
    ({str(package.parent)!r}, "./fairseq_expire/"),
]:
    os.chdir(folder)
    import_user_module(argparse.Namespace(user_dir=user_dir))
"""
    done = in_folder("-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
