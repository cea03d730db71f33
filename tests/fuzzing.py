"""How the fuzzers draw: the same few examples in every normal run, many new ones in the long mode (pytest --long)."""

from hypothesis import HealthCheck, Phase, given, settings

# How many times as many the long mode tries.
MANY = 20


def fuzz(check, *, examples, long, **strategies):
    """Calls ``check`` with values drawn from ``strategies``; says with which it fails, made as small as possible."""
    tried = settings(
        max_examples=examples * (MANY if long else 1),
        derandomize=not long,
        # Nothing of an earlier run counts, and nothing is written.
        database=None,
        deadline=None,
        print_blob=True,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    tried(given(**strategies)(check))()
