"""A trained model used on text: scoring, generation, streams. Needs no fairseq, also not for checkpoints."""

from fairseq_expire.inference.loading import load
from fairseq_expire.inference.score import Score, ScoredToken
from fairseq_expire.inference.stream import Candidate, Distribution, Stream
from fairseq_expire.inference.text_model import TextModel
from fairseq_expire.inference.utf8 import Utf8Mask

__all__ = ["Candidate", "Distribution", "Score", "ScoredToken", "Stream", "TextModel", "Utf8Mask", "load"]
