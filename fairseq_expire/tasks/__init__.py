from . import checkpoints, memory_caching_lm  # noqa: F401  (registers the task)

checkpoints.install()
