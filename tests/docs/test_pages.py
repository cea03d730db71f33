"""Names in pages that have to exist: files and headings that they link, options that they name, the API they list."""

import argparse
import ast
import pkgutil
import re

import doc_pages
import pytest
import scripts
import test_layers
from fairseq import options, registry
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.tasks import TASK_REGISTRY
from fairseq.utils import import_user_module

import fairseq_expire.inference
import fairseq_expire.modules

ROOT = doc_pages.ROOT
pages = pytest.mark.parametrize("page", doc_pages.PAGES, ids=doc_pages.name_of)

# Options of commands that are neither fairseq's nor ours.
OF_OTHERS = {
    "--compile-bytecode",  # uv
    *("--config-dir", "--config-name"),  # fairseq-hydra-train
    *("--nnodes", "--nproc_per_node", "--rdzv_backend", "--rdzv_endpoint"),  # torchrun
    *("--ntasks", "--ntasks-per-node", "--gpus-per-node"),  # srun
}


@pages
def test_links_lead_to_files_and_headings(page):
    for link in doc_pages.links(page):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{link}: there is no such file"
        assert target.is_relative_to(ROOT), f"{link}: outside the repository"
        if anchor:
            assert anchor in doc_pages.anchors(target), f"{link}: there is no such heading"


@pages
def test_no_path_of_one_machine(page):
    found = re.search(
        r"(?<![\w.~/-])/(?:home|root|work|tmp|Users|mnt|opt|private)/\S*", page.read_text(encoding="utf-8")
    )
    assert found is None, found[0]


def option_strings(parser):
    return {name for action in parser._actions for name in action.option_strings}


@pytest.fixture(scope="module")
def known():
    """Options of fairseq's commands, of ours, and of the scripts in examples and docs."""
    import_user_module(argparse.Namespace(user_dir=str(ROOT / "fairseq_expire")))
    found = set(OF_OTHERS)
    for make in (
        options.get_training_parser,
        options.get_generation_parser,
        options.get_interactive_generation_parser,
        options.get_eval_lm_parser,
        options.get_validation_parser,
        options.get_preprocessing_parser,
    ):
        found |= option_strings(make())
    kinds = [kind for name, kind in MODEL_DATACLASS_REGISTRY.items() if name.endswith("_span_lm")]
    kinds += [MODEL_DATACLASS_REGISTRY[name] for name in ("transformer_xl_lm", "compressive_transformer_lm")]
    kinds.append(CRITERION_DATACLASS_REGISTRY["expire_span_loss"])
    kinds += [kind for group in registry.REGISTRIES.values() for kind in group["dataclass_registry"].values()]
    for kind in kinds:
        parser = argparse.ArgumentParser(conflict_handler="resolve")
        gen_parser_from_dataclass(parser, kind())
        found |= option_strings(parser)
    parser = argparse.ArgumentParser(conflict_handler="resolve")
    TASK_REGISTRY["memory_caching_lm"].add_args(parser)
    found |= option_strings(parser)
    for path in ROOT.glob("data_prep/*.py"):
        found |= option_strings(scripts.load(path.stem).build_parser())
    for path in [
        *ROOT.glob("examples/**/*.py"),
        *ROOT.glob("docs/*.py"),
        ROOT / "fairseq_expire/export.py",
        ROOT / "tests/conftest.py",
    ]:
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        for call in calls:
            if getattr(call.func, "attr", "") in ("add_argument", "addoption"):
                found |= {part.value for part in call.args if isinstance(part, ast.Constant)}
    return found


@pages
def test_options_that_are_named_exist(page, known):
    for code in doc_pages.code(page):
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code):
            assert option in known, f"{option}, in: {code}"


# In fairseq's repository.
ELSEWHERE = {"scripts/average_checkpoints.py"}


@pages
def test_files_that_are_named_exist(page):
    """Paths in code with a folder in front, as they are in the repository or in the package."""
    for code in doc_pages.inline_code(page):
        if re.fullmatch(r"[\w*.-]+(/[\w*.-]+)+\.(py|md|sh|yaml|svg|json)", code) and code not in ELSEWHERE:
            found = [*ROOT.glob(code), *(ROOT / "fairseq_expire").glob(code), *page.parent.glob(code)]
            assert found, f"{code}: there is no such file"


@pages
def test_names_of_the_package_that_are_named_exist(page):
    for code in doc_pages.inline_code(page):
        for name in re.findall(r"(?<![\w/])fairseq_expire(?:\.[A-Za-z_]\w*)+", code):
            pkgutil.resolve_name(name)


def test_the_table_of_imports_is_the_one_that_is_checked():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").partition("### Who may import whom")[2]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", page.partition("## ")[0], re.M))
    # The text above the table speaks of the package itself, and of the files that differ from their package.
    assert set(rows) == {name for name in test_layers.MAY_IMPORT if "." not in name} - {"__init__"}
    for name, imports in rows.items():
        assert set(re.findall(r"`([\w.]+)`", imports)) == set(test_layers.MAY_IMPORT[name]), name


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160


def test_every_package_has_a_page_in_the_api_reference():
    shown = {name for page in ROOT.glob("docs/api/*.md") for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)}
    packages = {f"fairseq_expire.{path.parent.name}" for path in ROOT.glob("fairseq_expire/*/__init__.py")} | {
        f"data_prep.{path.stem}" for path in ROOT.glob("data_prep/*.py")
    }
    assert packages <= shown


def public(path):
    """The public functions and classes of a module, with whether they have a docstring."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, ast.get_docstring(node) is not None


@pytest.mark.parametrize(
    "package", ["tokenizers", "corpora", "streaming", "models", "criterions", "tasks", "fairseq_patches", "inference"]
)
def test_what_the_api_reference_lists_has_a_docstring(package):
    """The reference leaves out what has none."""
    missing = [
        f"{path.stem}.{name}"
        for path in sorted((ROOT / "fairseq_expire" / package).glob("**/*.py"))
        for name, documented in public(path)
        if not documented
    ]
    assert not missing


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    listed = set(re.findall(r"(\S+\.md)$", navigation, re.M))
    assert {page.relative_to(ROOT / "docs").as_posix() for page in ROOT.glob("docs/**/*.md")} <= listed
    assert {name for name in listed if not (ROOT / name).exists() and not (ROOT / "docs" / name).exists()} == set()


def test_every_public_name_is_in_the_api_reference():
    """A page names each module, or a package with all its modules; of some modules, it lists the members."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs/api").glob("*.md")))
    sections = dict(re.findall(r"^::: ([\w.]+)\n((?: .*\n)*)", pages + "\n", flags=re.MULTILINE))
    whole = [name for name, options in sections.items() if "show_submodules: true" in options]
    exported = {*fairseq_expire.modules.__all__, *fairseq_expire.inference.__all__}
    missing = []
    for path in sorted((ROOT / "fairseq_expire").glob("**/*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        options = sections.get(module, "")
        listed = module in sections and ("members:" not in options or "members: false" in options)
        if listed or any(module == name or module.startswith(f"{name}.") for name in whole):
            continue
        names = {name for name, _ in public(path)} - exported - set(re.findall(r"- (\w+)", options))
        missing += [f"{module}.{name}" for name in sorted(names) if f"{module}.{name}" not in sections]
    assert not missing
