"""Writes the tables of ``docs/options.md`` from the code that defines the options.

    python docs/generate_options.py           # writes the tables anew
    python docs/generate_options.py --check   # ends with an error if a table is out of date

Text outside the marks ``<!-- table: NAME -->`` and ``<!-- end -->`` is written by hand and stays as it is.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/options.md"
MARKS = re.compile(r"(<!-- table: (?P<name>[^ ]+) -->\n).*?(<!-- end -->)", re.DOTALL)

BASE = "transformer_xl_lm"
ARCHITECTURES = ("expire_span_lm", "adaptive_span_lm", "compressive_transformer_lm")
SCRIPTS = ("enwik8", "pg19", "wikitext103", "text", "copy_task")

Row = tuple[str, ...]


def table(head: Row, rows: Iterable[Row]) -> str:
    """A Markdown table; no rows give the word ``none``."""
    lines = [head, ("---",) * len(head), *rows]
    if len(lines) == 2:
        return "none\n"
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def load_fairseq() -> None:
    """Registers the architectures, the task and the criterion with fairseq."""
    from fairseq.utils import import_user_module

    import_user_module(argparse.Namespace(user_dir=str(ROOT / "fairseq_expire")))


def dataclass_rows(kind: type, *, without: type | None = None) -> Iterator[Row]:
    """Option, default and meaning of the fields of a dataclass that fairseq makes options of.

    Args:
        kind: the dataclass.
        without: a dataclass whose fields are left out.
    """
    shared = {field.name for field in dataclasses.fields(without)} if without else set()
    for field in dataclasses.fields(kind):
        meaning = field.metadata.get("help")
        # A value taken over from another group of fairseq's options begins with "${".
        taken_over = isinstance(field.default, str) and field.default.startswith("${")
        if field.name in shared or field.name.startswith("_") or taken_over or meaning in (None, argparse.SUPPRESS):
            continue
        name = field.name.replace("_", "-")
        positional = field.default == "???"
        yield (f"`{name}`" if positional else f"`--{name}`", default_of(field.default, positional), prose(meaning))


def default_of(value: Any, positional: bool = False) -> str:
    if positional:
        return "must be given"
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Enum):
        return f"`{value.value}`"
    return f"`{value}`" if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def prose(text: str) -> str:
    """Help text as Markdown: options and symbols such as ``</s>`` in code."""
    text = re.sub(r"(?<![\w`-])(--[a-z][a-z0-9-]*)", r"`\1`", " ".join(text.split()))
    return re.sub(r"(</?[a-z]+>)", r"`\1`", text)


def parser_rows(parser: argparse.ArgumentParser, *, without: Iterable[str] = ()) -> Iterator[Row]:
    """Option and meaning of the arguments of a parser."""
    for action in parser._actions:
        name = action.option_strings[-1] if action.option_strings else action.dest
        if isinstance(action, argparse._HelpAction) or name in without:
            continue
        yield f"`{' '.join([*([name] if action.option_strings else []), *values_of(action)])}`", prose(action.help)


def values_of(action: argparse.Action) -> list[str]:
    """Returns the values that follow an option on the command line, for the reader."""
    if action.choices is not None:
        return [", ".join(map(str, action.choices))]
    if isinstance(action.metavar, tuple):
        return list(action.metavar)
    if action.nargs == 0:
        return []
    return [(action.metavar or action.dest) + ("..." if action.nargs == "+" else "")]


def script_parser(name: str) -> argparse.ArgumentParser:
    """The parser of a script of data_prep."""
    spec = importlib.util.spec_from_file_location(f"data_prep_{name}", ROOT / f"data_prep/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build_parser()


def names_in(parser: argparse.ArgumentParser) -> set[str]:
    return {action.option_strings[-1] for action in parser._actions if action.option_strings}


def preset_rows() -> Iterator[Row]:
    """Name and settings of the presets of ``expire_span_lm``, which ``--arch`` takes."""
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_INV_REGISTRY

    for name in ARCH_MODEL_INV_REGISTRY["expire_span_lm"]:
        if name == "expire_span_lm":
            continue
        settings = argparse.Namespace()
        ARCH_CONFIG_REGISTRY[name](settings)
        words = []
        for option, value in vars(settings).items():
            option = f"--{option.replace('_', '-')}"
            if isinstance(value, bool):
                words += [f"`{option}`"] if value else []
            else:
                words.append(f"`{option} {value:g}`" if isinstance(value, float) else f"`{option} {value}`")
        yield f"`{name}`", ", ".join(words)


def tables() -> dict[str, Callable[[], str]]:
    """Returns the function that makes each table, by its name in the page."""
    from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
    from fairseq.models import MODEL_DATACLASS_REGISTRY
    from fairseq.tasks import TASK_DATACLASS_REGISTRY

    from fairseq_expire.corpora.command import CorpusParser, Parser
    from fairseq_expire.corpora.generated_command import GeneratorParser

    head = ("option", "default", "meaning")
    base = MODEL_DATACLASS_REGISTRY[BASE]
    scripts = {name: script_parser(name) for name in SCRIPTS}
    # The parsers with the options of every script of a kind.
    kinds = {
        "data_prep": Parser(prog="script"),
        "corpora": CorpusParser(prog="script"),
        "generated": GeneratorParser(corpus="corpus", make_generator=dict, prog="script", description=None),
    }
    shared = {type(parser): names_in(parser) for parser in kinds.values()}

    made = {
        "model": lambda: table(head, dataclass_rows(base)),
        "task": lambda: table(head, dataclass_rows(TASK_DATACLASS_REGISTRY["memory_caching_lm"])),
        "criterion": lambda: table(head, dataclass_rows(CRITERION_DATACLASS_REGISTRY["expire_span_loss"])),
        "presets": lambda: table(("`--arch`", "what it sets"), preset_rows()),
        "export": lambda: table(
            ("option", "meaning"), parser_rows(importlib.import_module("fairseq_expire.export").build_parser())
        ),
    }
    for name in ARCHITECTURES:
        made[name] = lambda kind=MODEL_DATACLASS_REGISTRY[name]: table(head, dataclass_rows(kind, without=base))
    for name, parser in kinds.items():
        without = set() if name == "data_prep" else shared[Parser]
        made[name] = lambda parser=parser, without=without: table(
            ("option", "meaning"), parser_rows(parser, without=without)
        )
    for name, parser in scripts.items():
        made[f"{name}.py"] = lambda parser=parser: table(
            ("option", "meaning"), parser_rows(parser, without=shared[type(parser)])
        )
    return made


def generate(page: str) -> str:
    """The page with its tables made anew.

    Raises:
        ValueError: the page names a table that is not known, or lacks one.
    """
    load_fairseq()
    made = tables()
    named = [match["name"] for match in MARKS.finditer(page)]
    if sorted(named) != sorted(made):
        raise ValueError(f"{PAGE.name} has the tables {sorted(named)}, expected {sorted(made)}: correct its marks")
    return MARKS.sub(lambda match: f"{match[1]}{made[match['name']]()}{match[3]}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a table is out of date")
    args = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    made = generate(page)
    if args.check and made != page:
        sys.exit("docs/options.md is out of date: python docs/generate_options.py")
    if not args.check:
        PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
