"""The memory mechanism in plain PyTorch: no fairseq needed."""

from .attention import attend
from .expire_span import ExpireSpan
from .fixed_span import FixedSpan
from .memory import LayerMemory, Memory
from .policy import MemoryPolicy
from .transformer import LayerReport, MemoryLayer, MemoryTransformer, StackOutput

__all__ = [
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
]
