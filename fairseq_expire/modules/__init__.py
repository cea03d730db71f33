"""The memory mechanism in plain PyTorch: no fairseq needed."""

from .adaptive_span import AdaptiveSpan
from .attention import attend
from .compressive import Compressive
from .description import Description
from .expire_span import ExpireSpan
from .fixed_span import FixedSpan
from .language_model import LanguageModel, Prediction, TokenReader, dictionary_digest
from .layer import MemoryLayer
from .layer_memory import LayerMemory
from .memory import Memory
from .policy import MemoryPolicy, keep_bounds
from .report import LayerReport
from .threads import let_waiting_threads_sleep
from .transformer import MemoryTransformer, StackOutput

__all__ = [
    "AdaptiveSpan",
    "Compressive",
    "Description",
    "ExpireSpan",
    "FixedSpan",
    "LanguageModel",
    "LayerMemory",
    "LayerReport",
    "Memory",
    "MemoryLayer",
    "MemoryPolicy",
    "MemoryTransformer",
    "Prediction",
    "StackOutput",
    "TokenReader",
    "attend",
    "dictionary_digest",
    "keep_bounds",
    "let_waiting_threads_sleep",
]
