"""The architectures.

Importing them registers all that this package has for fairseq: ``from_pretrained`` needs the task, too.
"""

from fairseq_expire import requires_fairseq  # noqa: F401

# isort: split

from fairseq_expire import register
from fairseq_expire.models import (  # noqa: F401  (registers the architectures)
    adaptive_span_lm,
    compressive_transformer_lm,
    expire_span_lm,
    transformer_xl_lm,
)

register()
