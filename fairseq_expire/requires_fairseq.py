"""An import for modules that need fairseq, in front of theirs of fairseq: where there is none, it ends in one sentence."""

from fairseq_expire import fairseq_version

if fairseq_version.folder() is None:
    raise ImportError(f"this part of fairseq_expire needs {fairseq_version.absence()}", name="fairseq")
