"""A trained model at work on text: scoring, writing, streams. Needs no fairseq for what was exported."""

from .loading import load
from .score import Score, ScoredToken
from .stream import Distribution, Stream
from .text_model import TextModel
from .utf8 import Utf8Mask

__all__ = ["Distribution", "Score", "ScoredToken", "Stream", "TextModel", "Utf8Mask", "load"]
