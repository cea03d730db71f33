"""Griffe extension: docstrings of this project as mkdocstrings reads them."""

import re

import griffe

# A section of a docstring, which Griffe knows only after an empty line.
SECTION = re.compile(r"(?<=[^\n])\n(?=(?:Args|Returns|Yields|Raises):\n)")
# ":class:`Name`" and the like.
ROLE = re.compile(r":(?:class|meth|func|attr|mod|data):(?=`)")


class Docstrings(griffe.Extension):
    """Separates sections, and takes Sphinx's roles out."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub("", SECTION.sub("\n\n", obj.docstring.value))
