"""Pages of the documentation, taken apart for the tests."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/README.md")],
    key=lambda page: page.relative_to(ROOT).as_posix(),
)

FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`+([^`]+)`+")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def code_blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return [code for _, found, code in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def section_blocks(page: Path, heading: str, language: str) -> list[str]:
    """The fenced blocks of a language below the second-level heading of this name."""
    text = page.read_text(encoding="utf-8")
    [section] = re.findall(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return [code for _, found, code in FENCE.findall(section) if found == language]


def inline_code(page: Path) -> list[str]:
    """The texts between backticks inside lines."""
    return INLINE.findall(FENCE.sub("", page.read_text(encoding="utf-8")))


def code(page: Path) -> list[str]:
    """All code: the fenced blocks and what stands between backticks in a line."""
    return [found for _, _, found in FENCE.findall(page.read_text(encoding="utf-8"))] + inline_code(page)


def links(page: Path) -> list[str]:
    """The targets of links and images outside of code."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return LINK.findall(re.sub(r"`[^`\n]+`", "", text))


def anchors(page: Path) -> set[str]:
    """The anchors of the headings, as GitHub and MkDocs name them alike."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}
