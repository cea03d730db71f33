"""The memory mechanism in plain PyTorch: it needs torch and the standard library alone."""

from fairseq_expire.modules.adaptive_vocabulary import AdaptiveInput, AdaptiveSoftmax, Clusters
from fairseq_expire.modules.attention.tiled import attend
from fairseq_expire.modules.config import POLICIES, LanguageModelConfig
from fairseq_expire.modules.language_model import LanguageModel, Prediction
from fairseq_expire.modules.layer import LayerReport, MemoryLayer
from fairseq_expire.modules.layer_memory import LayerMemory
from fairseq_expire.modules.memory import Memory
from fairseq_expire.modules.policies.adaptive_span import AdaptiveSpan
from fairseq_expire.modules.policies.base import MemoryPolicy, keep_bounds
from fairseq_expire.modules.policies.compressive import Compressive
from fairseq_expire.modules.policies.expire_span import ExpireSpan
from fairseq_expire.modules.policies.fixed_span import FixedSpan
from fairseq_expire.modules.threads import let_waiting_threads_sleep
from fairseq_expire.modules.transformer import MemoryTransformer, StackOutput

__all__ = [
    "POLICIES",
    "AdaptiveInput",
    "AdaptiveSoftmax",
    "AdaptiveSpan",
    "Clusters",
    "Compressive",
    "ExpireSpan",
    "FixedSpan",
    "LanguageModel",
    "LanguageModelConfig",
    "LayerMemory",
    "LayerReport",
    "Memory",
    "MemoryLayer",
    "MemoryPolicy",
    "MemoryTransformer",
    "Prediction",
    "StackOutput",
    "attend",
    "keep_bounds",
    "let_waiting_threads_sleep",
]
