"""Import this before fairseq: it makes sure that fairseq is there, is the supported version, and prints no stray lines.

Raises:
    ImportError: fairseq is missing, or it is not the supported version.
"""

from fairseq_expire import fairseq_version
from fairseq_expire.fairseq_patches import stray_lines

if fairseq_version.folder() is None:
    raise ImportError(f"this part of fairseq_expire needs {fairseq_version.absence()}", name="fairseq")
# Before the import: Python warns of fairseq's source when it compiles it.
stray_lines.silence()
fairseq_version.check()
