"""The criterion. Importing it registers all that this package has for fairseq."""

from fairseq_expire import requires_fairseq  # noqa: F401

# isort: split

from fairseq_expire import register
from fairseq_expire.criterions import expire_span_loss  # noqa: F401  (registers the criterion)

register()
