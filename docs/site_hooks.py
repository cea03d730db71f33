"""Hooks of the site: they bring files of the repository outside ``docs/`` into it.

A page may link any file of the repository, as it is seen on GitHub. In the site that file has its path in the
repository, and files of ``docs/`` stand at the top.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS = "docs/"
# Pages outside docs/ that the navigation names.
PAGES = ["CONTRIBUTING.md", "CHANGELOG.md"]
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[#)])")


def site_path(path: str) -> str:
    """Returns the place of a file of the repository in the site."""
    return path.removeprefix(DOCS)


def linked_from(path: str) -> dict[str, str]:
    """The links of a page to files of the repository: as written, and as a path in the repository."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return {link: posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for link in LINK.findall(text)}


def on_files(files: Files, config) -> Files:
    """Adds the files that pages link to, and what those link to."""
    found = [f"{DOCS}{file.src_uri}" for file in files.documentation_pages()]
    found += PAGES + sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("examples/*/README.md"))
    seen = set(found)
    for path in found:
        if not path.startswith(DOCS):
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            new = [link for link in linked_from(path).values() if link not in seen and (ROOT / link).is_file()]
            new = [link for link in dict.fromkeys(new) if not link.startswith(DOCS)]
            found += new
            seen.update(new)
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Rewrites links to where the site has the files."""
    name = page.file.src_uri
    path = name if (ROOT / name).is_file() and page.file.generated_by else f"{DOCS}{name}"
    links = linked_from(path)

    def moved(match: re.Match) -> str:
        target = links.get(match[0])
        if target is None or not (ROOT / target).is_file():
            return match[0]
        return posixpath.relpath(site_path(target), posixpath.dirname(name) or ".")

    return LINK.sub(moved, markdown)
