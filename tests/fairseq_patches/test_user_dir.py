"""--user-dir by every path and name of the package; two copies of it, which are refused in a message."""

import os
import shutil
import subprocess
import sys

import pytest
from forks import ROOT, Forks

# The package and a copy of it lie in `one/` and `two/`; links lead to the first.
IMPORTS = """
import argparse, sys
{before}
from fairseq.utils import import_user_module
for user_dir in {user_dirs!r}:
    import_user_module(argparse.Namespace(user_dir=user_dir))
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.dataclass import initialize
from fairseq.logging import meters
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY
import fairseq_expire
assert {{"expire_span_lm", "adaptive_span_lm", "expire_span_lm_tiny"}} <= set(ARCH_MODEL_REGISTRY)
assert "expire_span_loss" in CRITERION_REGISTRY
assert TASK_REGISTRY["memory_caching_lm"] is sys.modules["fairseq_expire.tasks.memory_caching_lm"].MemoryCachingLMTask
# Patches are there, and once.
assert hasattr(meters, "MaxMeter")
assert not hasattr(initialize.add_defaults.__wrapped__, "__wrapped__")
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


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    made = Forks("import fairseq, fairseq.checkpoint_utils, fairseq.trainer", tmp_path_factory.mktemp("forks"))
    yield made
    made.close()


@pytest.fixture
def imported(folder, forks):
    """A process that gives fairseq these ``--user-dir`` in turn, with the package of a folder on the path."""

    def run(*user_dirs, before="", installed="one"):
        script = IMPORTS.format(before=before, user_dirs=[str(user_dir) for user_dir in user_dirs])
        return forks.run(script, cwd=folder, search=[folder / installed])

    return run


# A program that uses the package before fairseq loads it.
PROGRAM = "import fairseq_expire.modules; assert 'fairseq_expire.tasks' not in sys.modules"


@pytest.mark.parametrize("before", ["", PROGRAM], ids=["first", "imported_before"])
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
def test_the_same_package_registers_once(folder, imported, user_dirs, before):
    done = imported(*user_dirs, before=before)
    assert done.returncode == 0, done.stderr
    assert os.path.realpath(done.stdout.strip()) == str(folder / "one/fairseq_expire/__init__.py")


@pytest.mark.parametrize(
    "before",
    [
        pytest.param("import fairseq_expire; fairseq_expire.register(); fairseq_expire.register()", id="register"),
        pytest.param("import fairseq_expire.tasks", id="tasks"),
        pytest.param("import fairseq_expire.criterions.expire_span_loss", id="a_criterion"),
        pytest.param("import fairseq_expire.models.memory_lm", id="a_model"),
        pytest.param("import fairseq_expire.fairseq_patches.resuming, fairseq_expire.models", id="patches_first"),
    ],
)
def test_a_program_registers_without_a_user_dir(imported, before):
    done = imported(before=before)
    assert done.returncode == 0, done.stderr
    again = imported("one/fairseq_expire", "other_name", before=before)
    assert again.returncode == 0, again.stderr


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
def test_a_second_copy_is_refused(folder, imported, user_dirs, before):
    done = imported(*user_dirs, before=before)
    *_, last = done.stderr.strip().splitlines()
    copy = folder / user_dirs[-1]
    assert last.startswith(
        f"ImportError: --user-dir {copy} is a copy of fairseq_expire beside the one in {folder / 'one'}"
    )
    assert f"give --user-dir {folder / 'one/fairseq_expire'}" in last


@pytest.mark.parametrize("user_dir", ["renamed", "renamed/"])
def test_a_renamed_folder_is_the_package_where_there_is_no_other(folder, imported, user_dir):
    done = imported(user_dir, installed="nowhere")
    assert done.returncode == 0, done.stderr
    assert os.path.realpath(done.stdout.strip()) == str(folder / "renamed/__init__.py")


def test_the_copy_that_is_named_first_is_used(folder, imported):
    done = imported("two/fairseq_expire")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "two/fairseq_expire/__init__.py")


@pytest.mark.parametrize(
    "source, before",
    [
        pytest.param("import fairseq_expire", "", id="import"),
        pytest.param("from fairseq_expire.modules import MemoryPolicy", "", id="import_of_a_part"),
        pytest.param("import fairseq_expire; fairseq_expire.register()", PROGRAM, id="register_in_a_program"),
        pytest.param("from fairseq_expire.models.memory_lm import MemoryLMConfig", PROGRAM, id="a_model_in_a_program"),
    ],
)
def test_a_user_dir_of_another_package_may_build_on_this_one(imported, tmp_path, source, before):
    (tmp_path / "my_models").mkdir()
    (tmp_path / "my_models/__init__.py").write_text(source + "\n")
    done = imported(tmp_path / "my_models", before=before)
    assert done.returncode == 0, done.stderr
    both = imported(tmp_path / "my_models", "other_name", before=before)
    assert both.returncode == 0, both.stderr


def test_another_user_dir_registers_nothing(forks, folder, tmp_path):
    """A program that imports this package later gets no fairseq either."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/__init__.py").touch()
    script = """
import argparse, sys
from fairseq.utils import import_user_module
import_user_module(argparse.Namespace(user_dir="theirs"))
import fairseq_expire.inference
assert "fairseq_expire.tasks" not in sys.modules
"""
    done = forks.run(script, cwd=tmp_path, search=[folder / "one"])
    assert done.returncode == 0, done.stderr


def test_user_dir_is_found_from_any_folder(tmp_path):
    # Only the refusal of an unknown architecture lists those that are registered.
    # -P: without it `-m` would put the current folder on sys.path, which the fairseq-train script does not.
    command = [
        sys.executable,
        "-P",
        "-m",
        "fairseq_cli.train",
        "--user-dir",
        "fairseq_expire",
        "--arch",
        "no_such_arch",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "invalid choice: 'no_such_arch'" in done.stderr
    assert "'expire_span_lm'" in done.stderr


def test_user_dir_may_be_imported_already(forks, tmp_path):
    script = f"""
import argparse, os
import fairseq_expire
from fairseq.utils import import_user_module

for folder, user_dir in [
    ({str(tmp_path)!r}, "fairseq_expire"),
    ({str(tmp_path)!r}, {str(ROOT / "fairseq_expire")!r}),
    ({str(ROOT)!r}, "fairseq_expire"),
    ({str(ROOT)!r}, "./fairseq_expire/"),
]:
    os.chdir(folder)
    import_user_module(argparse.Namespace(user_dir=user_dir))
from fairseq.tasks import TASK_REGISTRY
assert "memory_caching_lm" in TASK_REGISTRY
"""
    done = forks.run(script, cwd=tmp_path, search=[ROOT])
    assert done.returncode == 0, done.stderr
