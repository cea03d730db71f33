"""A trained model at work on text: scoring, writing, streams. Needs no fairseq for what was exported."""

from fairseq_expire.inference.loading import load
from fairseq_expire.inference.score import Score, ScoredToken
from fairseq_expire.inference.stream import Distribution, Stream
from fairseq_expire.inference.text_model import TextModel
from fairseq_expire.inference.utf8 import Utf8Mask

__all__ = ["Distribution", "Score", "ScoredToken", "Stream", "TextModel", "Utf8Mask", "load"]
