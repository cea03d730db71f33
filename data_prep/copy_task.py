"""Generate the copy task: count a run of A, and repeat it after many B.

An episode is n times A, d times B, ?, n times A, and a full stop; n and d are uniform. Labels count from ? to the last
A, and are the next symbol. Episodes follow each other.
"""

import argparse
import functools
from typing import Any

import numpy as np

from fairseq_expire.fairseq_version import require_for_command

# Before the imports that need fairseq.
require_for_command("copy_task.py")

from fairseq_expire.corpora.command import positive  # noqa: E402
from fairseq_expire.corpora.generated import Part, random_numbers  # noqa: E402
from fairseq_expire.corpora.generated_command import GeneratorParser  # noqa: E402

# The paper's spans reach this far.
LONGEST_DISTANCE = 131_072
COUNT, EPISODES = 10, 2_000
# About how many symbols a part has.
PART_SYMBOLS = 1 << 20

A, B, QUESTION, STOP = range(4)
LABEL_A, LABEL_STOP, NO_LABEL = 0, 1, -1


class Copy:
    """The generator of the copy task, a :class:`~fairseq_expire.corpora.generated.Generator`.

    Args:
        count: the largest number of A.
        distance: the smallest and the largest number of B.
        episodes: number of episodes of train; valid and test have a tenth each. None to count by ``steps``.
        steps: number of symbols of train at least: it ends with the episode that reaches it. Valid and test have a
            tenth each. None to count by ``episodes``.
        seed: of the random numbers.

    Raises:
        ValueError: a number is out of range, or not exactly one of ``episodes`` and ``steps`` is given.
    """

    corpus = "copy"
    symbols = ("A", "B", "?", ".")
    labels = ("A", ".")

    def __init__(self, *, count: int, distance: tuple[int, int], episodes: int | None, steps: int | None, seed: int):
        low, high = distance
        if not 1 <= low <= high <= LONGEST_DISTANCE:
            raise ValueError(
                f"--distance {low} {high}: expected two numbers from 1 to {LONGEST_DISTANCE}, the smaller one first"
            )
        if not 1 <= count <= LONGEST_DISTANCE:
            raise ValueError(f"--count {count}: expected a number from 1 to {LONGEST_DISTANCE}")
        if (episodes is None) == (steps is None):
            raise ValueError("--episodes and --steps: expected one of the two")
        if (episodes or steps) < 1:
            raise ValueError(f"{episodes or steps} episodes or steps: expected a number above 0")
        self.count, self.distance, self.episodes, self.steps, self.seed = count, (low, high), episodes, steps, seed
        # An episode has 2 n + d + 2 symbols, so this is the mean.
        self.part_episodes = max(1, PART_SYMBOLS // (count + 3 + (low + high) // 2))

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "distance": list(self.distance),
            "episodes": self.episodes,
            "steps": self.steps,
            "seed": self.seed,
        }

    def num_parts(self, split: str) -> int:
        return -(-self.num_episodes[split] // self.part_episodes)

    @functools.cached_property
    def num_episodes(self) -> dict[str, int]:
        """The number of episodes of each split."""
        numbers = {"train": self.episodes or self.steps}
        numbers["valid"] = numbers["test"] = max(1, numbers["train"] // 10)
        return numbers if self.steps is None else {split: self._reach(split, steps) for split, steps in numbers.items()}

    def _reach(self, split: str, steps: int) -> int:
        """The number of episodes that have at least ``steps`` symbols together."""
        part = done = 0
        while True:
            counts, distances = self._draw(split, part)
            ends = done + np.cumsum(2 * counts + distances + 2)
            if ends[-1] >= steps:
                return part * self.part_episodes + int(np.searchsorted(ends, steps)) + 1
            part, done = part + 1, int(ends[-1])

    def _draw(self, split: str, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws n and d, int64 [episodes], for the episodes of a part that is not the last one."""
        random = random_numbers(self.seed, split, number)
        low, high = self.distance
        counts = random.integers(1, self.count, size=self.part_episodes, endpoint=True)
        return counts, random.integers(low, high, size=self.part_episodes, endpoint=True)

    def simulate(self, split: str, number: int) -> Part:
        counts, distances = self._draw(split, number)
        episodes = min(self.part_episodes, self.num_episodes[split] - number * self.part_episodes)
        counts, distances, ones = counts[:episodes], distances[:episodes], np.ones(episodes, np.int64)
        symbols = repeat([A, B, QUESTION, A, STOP], [counts, distances, ones, counts, ones])
        labels = repeat([NO_LABEL, LABEL_A, LABEL_STOP, NO_LABEL], [counts + distances, counts, ones, ones])
        return Part(symbols, labels)

    def finish(self, simulated: Part, carry: None) -> tuple[Part, None]:
        return simulated, None


def repeat(values: list[int], lengths: list[np.ndarray]) -> np.ndarray:
    """Concatenates runs.

    Args:
        values: the value of each run of an episode.
        lengths: the lengths of each run, int64 [episodes].

    Returns:
        The runs of the first episode, then those of the second, and so on; int8 [sum of the lengths].
    """
    return np.repeat(np.tile(np.array(values, np.int8), len(lengths[0])), np.stack(lengths, axis=1).ravel())


def build_parser() -> GeneratorParser:
    parser = GeneratorParser(corpus=Copy.corpus, make_generator=Copy, prog="copy_task.py", description=__doc__)
    parser.add_argument(
        "--count",
        type=positive,
        default=COUNT,
        metavar="N",
        help=f"the number of A is uniform from 1 to this (default: {COUNT})",
    )
    parser.add_argument(
        "--distance",
        type=positive,
        nargs=2,
        default=(1, LONGEST_DISTANCE),
        metavar=("LOW", "HIGH"),
        help=f"the number of B is uniform from LOW to HIGH (default: 1 {LONGEST_DISTANCE}, the most)",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--episodes",
        type=positive,
        metavar="N",
        help=f"number of episodes of train; valid and test have a tenth each (default: {EPISODES})",
    )
    size.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help="or its number of symbols at least: the last episode is complete; valid and test have a tenth each",
    )
    return parser


def parameters(args: argparse.Namespace) -> dict[str, Any]:
    episodes = args.episodes if args.steps or args.episodes else EPISODES
    return {
        "count": args.count,
        "distance": tuple(args.distance),
        "episodes": episodes,
        "steps": args.steps,
        "seed": args.seed,
    }


def main(arguments: list[str] | None = None) -> None:
    build_parser().run_generator(parameters, arguments)


if __name__ == "__main__":
    main()
