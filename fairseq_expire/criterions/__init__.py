from fairseq_expire import with_fairseq  # noqa: F401

from . import expire_span_loss  # noqa: F401  (registers the criterion)
