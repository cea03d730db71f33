from . import expire_span_lm, transformer_xl_lm  # noqa: F401  (registers the architectures)
