"""Griffe extension: docstrings of this project as mkdocstrings reads them."""

import re

import griffe

# A section of a docstring, which Griffe knows only after an empty line.
SECTION = re.compile(r"(?<=[^\n])\n(?=(?:Args|Returns|Yields|Raises):\n)")
# ":class:`Name`" and ":class:`~package.Name`", of which the name is shown.
ROLE = re.compile(r":(?:class|meth|func|attr|mod|data):`(?:~[\w.]*\.)?([^`]+)`")
# A table in columns between lines of "=", which Markdown does not know.
TABLE = re.compile(r"^(=+(?: +=+)+\n.*\n=+(?: +=+)+)$", re.MULTILINE | re.DOTALL)


class Docstrings(griffe.Extension):
    """Separates sections, takes Sphinx's roles out, and shows tables as they are."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            text = SECTION.sub("\n\n", obj.docstring.value)
            obj.docstring.value = TABLE.sub(r"```text\n\1\n```", ROLE.sub(r"`\1`", text))
