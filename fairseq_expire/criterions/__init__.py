from . import expire_span_loss  # noqa: F401  (registers the criterion)
