from fairseq_expire import requires_fairseq  # noqa: F401

# isort: split

# Registers the architectures.
from fairseq_expire.models import adaptive_span_lm, compressive_transformer_lm, expire_span_lm, transformer_xl_lm  # noqa: F401
