"""Fuzzing: the same few examples in every normal run, many new ones in the long mode (``pytest --long``)."""

from hypothesis import HealthCheck, Phase, given, settings

# Factor by which the long mode tries more examples.
MANY = 20


def fuzz(check, *, examples, long, **strategies):
    """Calls ``check`` with values drawn from ``strategies``; a failure names the smallest values that were found."""
    tried = settings(
        max_examples=examples * (MANY if long else 1),
        derandomize=not long,
        # Earlier runs have no influence, and nothing is written.
        database=None,
        deadline=None,
        print_blob=True,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    tried(given(**strategies)(check))()
