"""The memory mechanism in plain PyTorch: it needs PyTorch and NumPy alone."""

from fairseq_expire.modules.adaptive_vocabulary import AdaptiveInput, AdaptiveSoftmax, Clusters
from fairseq_expire.modules.attention import attend
from fairseq_expire.modules.borders import Borders
from fairseq_expire.modules.config import POLICIES, LanguageModelConfig
from fairseq_expire.modules.language_model import LanguageModel, Prediction
from fairseq_expire.modules.layer import LayerOutput, LayerReport, MemoryLayer
from fairseq_expire.modules.memory import LayerMemory, Memory
from fairseq_expire.modules.policies.adaptive_span import AdaptiveSpan
from fairseq_expire.modules.policies.base import CompressedStates, MemoryPolicy, ParameterBounds, keep_bounds
from fairseq_expire.modules.policies.compressive import Compressive
from fairseq_expire.modules.policies.expire_span import ExpireSpan
from fairseq_expire.modules.policies.fixed_span import FixedSpan
from fairseq_expire.modules.threads import let_waiting_threads_sleep
from fairseq_expire.modules.transformer import MemoryTransformer, StackOutput
from fairseq_expire.modules.visibility import Visibility

__all__ = [
    "POLICIES",
    "AdaptiveInput",
    "AdaptiveSoftmax",
    "AdaptiveSpan",
    "Borders",
    "Clusters",
    "CompressedStates",
    "Compressive",
    "ExpireSpan",
    "FixedSpan",
    "LanguageModel",
    "LanguageModelConfig",
    "LayerMemory",
    "LayerOutput",
    "LayerReport",
    "Memory",
    "MemoryLayer",
    "MemoryPolicy",
    "MemoryTransformer",
    "ParameterBounds",
    "Prediction",
    "StackOutput",
    "Visibility",
    "attend",
    "keep_bounds",
    "let_waiting_threads_sleep",
]
