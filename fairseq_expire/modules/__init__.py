"""The memory mechanism in plain PyTorch: no fairseq needed."""

from .adaptive_span import AdaptiveSpan
from .attention import attend
from .compressive import Compressive
from .expire_span import ExpireSpan
from .fixed_span import FixedSpan
from .layer import LayerReport, MemoryLayer
from .layer_memory import LayerMemory
from .memory import Memory
from .policy import MemoryPolicy, keep_bounds
from .transformer import MemoryTransformer, StackOutput

__all__ = [
    "AdaptiveSpan",
    "Compressive",
    "ExpireSpan",
    "FixedSpan",
    "LayerMemory",
    "LayerReport",
    "Memory",
    "MemoryLayer",
    "MemoryPolicy",
    "MemoryTransformer",
    "StackOutput",
    "attend",
    "keep_bounds",
]
