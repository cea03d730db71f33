from fairseq_expire import with_fairseq  # noqa: F401

# Registers the architectures.
from . import adaptive_span_lm, compressive_transformer_lm, expire_span_lm, transformer_xl_lm  # noqa: F401
