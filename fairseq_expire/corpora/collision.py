"""The collision task of the paper (A.2.3, A.1.4): two particles on a grid, and questions about past collisions."""

from typing import Any, NamedTuple

import numpy as np

from fairseq_expire.corpora.generated import Part, random_numbers

# The paper's (A.2.3).
STEPS, GRID, COLOURS, SPEED = 50_000_000, 16, 5, 1.0
COLOUR_CHANGE, MATCHING = 0.05, 0.4
PAIRS = ("unordered", "ordered")
LARGEST_GRID, MOST_COLOURS = 128, 100
# Several pairs of particles move at the same time. Each makes a stretch of a part, which is longer than the longest
# spans of the paper (65,536 symbols).
STRETCHES, STRETCH_STEPS = 32, 16_384
PART_STEPS = STRETCHES * STRETCH_STEPS
NO_LABEL = -1
# The easy task's second question asks for this many collisions.
SEVERAL = 3


class Simulated(NamedTuple):
    """Steps without what depends on the parts before them.

    Args:
        places: int16 [steps, 4], x and y of the first particle, then of the second one.
        colours: int16 [steps, 2], of both particles; None in the easy task.
        matching: bool [steps], true where the question takes the colours of the last collision; None in the easy task.
        questions: int16 [steps], the other questions: indices of pairs of colours. In the easy task all of them: 0 asks
            for the last collision, 1 for the last three.
    """

    places: np.ndarray
    colours: np.ndarray | None
    matching: np.ndarray | None
    questions: np.ndarray


class Collisions(NamedTuple):
    """Collisions in their order: those that later parts may have to know.

    Args:
        quadrants: int16 [collisions].
        pairs: int16 [collisions], indices of pairs of colours; all 0 in the easy task.
    """

    quadrants: np.ndarray
    pairs: np.ndarray


class Collision:
    """The generator of the collision tasks, a :class:`~fairseq_expire.corpora.generated.Generator`.

    Args:
        easy: make the easy task (A.1.4) instead of the hard one (A.2.3).
        grid: number of places in a row and in a column.
        colours: number of colours; None in the easy task.
        pairs: ``"unordered"`` if a question names the colours of the two particles in any order, ``"ordered"`` if it
            names that of the first particle first; None in the easy task.
        speed: standard deviation of the velocities, in places a step.
        steps: number of steps of train; valid and test have a tenth each.
        seed: of the random numbers.

    Raises:
        ValueError: a number is out of range, or an option does not fit the task.
    """

    corpus = "collision"

    def __init__(
        self, *, easy: bool, grid: int, colours: int | None, pairs: str | None, speed: float, steps: int, seed: int
    ):
        if not 2 <= grid <= LARGEST_GRID:
            raise ValueError(f"--grid {grid}: expected a number from 2 to {LARGEST_GRID}")
        if not 0 < speed <= grid - 1:
            raise ValueError(
                f"--speed {speed}: expected a number above 0 and at most --grid - 1, {grid - 1}; faster particles "
                "hardly find a step that stays on the grid"
            )
        if easy and not (colours is None and pairs is None):
            raise ValueError("--easy has no colours; leave out --colours and --pairs")
        if not easy and (colours is None or not 2 <= colours <= MOST_COLOURS):
            raise ValueError(f"--colours {colours}: expected a number from 2 to {MOST_COLOURS}")
        if not easy and pairs not in PAIRS:
            raise ValueError(f"--pairs {pairs}: expected one of {', '.join(PAIRS)}")
        if steps < 1:
            raise ValueError(f"--steps {steps}: expected a number above 0")
        self.easy, self.grid, self.colours, self.pairs = easy, grid, colours, pairs
        self.speed, self.steps, self.seed = speed, steps, seed
        places = [f"{axis}{place}" for axis in "xy" for place in range(grid)]
        quadrants = [str(quadrant) for quadrant in range(4)]
        if easy:
            self.symbols = (*places, "q0", "q1")
            self.labels = (*quadrants, *(a + b + c for a in quadrants for b in quadrants for c in quadrants))
        else:
            self.symbols = (*places, *(f"{kind}{colour}" for kind in "cq" for colour in range(colours)))
            self.labels = tuple(quadrants)
            # [pairs, 2], the colours of each question.
            self._pairs = np.array(
                [(a, b) for a in range(colours) for b in range(colours) if pairs == "ordered" or a <= b], np.int16
            )
            # [colours, colours], the question for the colours of the first particle and of the second one.
            self._pair_of = np.zeros((colours, colours), np.int16)
            numbers = np.arange(len(self._pairs))
            if pairs == "unordered":
                self._pair_of[self._pairs[:, 1], self._pairs[:, 0]] = numbers
            self._pair_of[self._pairs[:, 0], self._pairs[:, 1]] = numbers

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "easy": self.easy,
            "grid": self.grid,
            "colours": self.colours,
            "pairs": self.pairs,
            "speed": self.speed,
            "steps": self.steps,
            "seed": self.seed,
        }

    def num_steps(self, split: str) -> int:
        """The number of steps of a split."""
        return self.steps if split == "train" else max(1, self.steps // 10)

    def num_parts(self, split: str) -> int:
        return -(-self.num_steps(split) // PART_STEPS)

    def simulate(self, split: str, number: int) -> Simulated:
        random = random_numbers(self.seed, split, number)
        steps = min(PART_STEPS, self.num_steps(split) - number * PART_STEPS)
        length = min(steps, STRETCH_STEPS)
        stretches = -(-steps // length)
        places = move(random, stretches=stretches, steps=length, grid=self.grid, speed=self.speed)[:steps]
        if self.easy:
            return Simulated(places, None, None, random.integers(2, size=steps, dtype=np.int16))
        colours = change_colours(random, stretches=stretches, steps=length, colours=self.colours)[:steps]
        matching = random.random(steps) < MATCHING
        return Simulated(places, colours, matching, random.integers(len(self._pairs), size=steps, dtype=np.int16))

    def finish(self, simulated: Simulated, carry: Collisions | None) -> tuple[Part, Collisions]:
        if carry is None:
            carry = Collisions(np.zeros(0, np.int16), np.zeros(0, np.int16))
        x, y, other_x, other_y = simulated.places.T
        collide = (x == other_x) & (y == other_y)
        steps = np.flatnonzero(collide)
        quadrants = 2 * (x[steps] >= self.grid // 2) + (y[steps] >= self.grid // 2)
        pairs = np.zeros(len(steps), np.int16)
        if not self.easy:
            pairs = self._pair_of[tuple(simulated.colours[steps].T)]
        known = Collisions(
            np.concatenate([carry.quadrants, quadrants.astype(np.int16)]), np.concatenate([carry.pairs, pairs])
        )
        # Up to and with each step.
        num_collisions = len(carry.quadrants) + np.cumsum(collide)
        # x and y of both particles, as symbols.
        places = simulated.places + np.array([0, self.grid, 0, self.grid], np.int16)
        if self.easy:
            questions = simulated.questions
            columns = [places, questions[:, None] + 2 * self.grid]
            answers = answer_easy(known.quadrants, num_collisions, questions)
            kept = slice(-SEVERAL, None)
        else:
            questions = ask(known.pairs, num_collisions, simulated)
            colour_symbols = 2 * self.grid + simulated.colours
            columns = [places, colour_symbols, 2 * self.grid + self.colours + self._pairs[questions]]
            answers = answer_hard(known, num_collisions, questions)
            # The last collision of each pair.
            _, first = np.unique(known.pairs[::-1], return_index=True)
            kept = np.sort(len(known.pairs) - 1 - first)
        symbols = np.concatenate(columns, axis=1)
        labels = np.full(symbols.shape, NO_LABEL, np.int16)
        labels[:, -1] = answers
        return Part(symbols.ravel(), labels.ravel()), Collisions(known.quadrants[kept], known.pairs[kept])


def move(random: np.random.Generator, *, stretches: int, steps: int, grid: int, speed: float) -> np.ndarray:
    """Moves two particles for each stretch.

    A place is a point of the square [0, grid - 1]², rounded. A step adds the velocity. Where that would leave the
    square, the velocity is drawn again until it does not.

    Returns:
        int16 [stretches * steps, 4], x and y of the first particle, then of the second one; stretch after stretch.
    """
    # Coordinates come first, so that they are combined fast.
    shape = (2, 2 * stretches)
    centre = (grid - 1) / 2
    # Measured from the centre, so that one comparison finds what is outside.
    points = random.uniform(-centre, centre, size=shape)
    velocities = speed * random.standard_normal(shape)
    trace = np.empty((steps, *shape), np.int16)
    for step in range(steps):
        moved = points + velocities
        far = np.abs(moved) > centre
        outside = np.flatnonzero(far[0] | far[1])
        while len(outside):
            drawn = speed * random.standard_normal((2, len(outside)))
            velocities[:, outside] = drawn
            drawn += points[:, outside]
            moved[:, outside] = drawn
            far = np.abs(drawn) > centre
            outside = outside[far[0] | far[1]]
        points = moved
        np.rint(points + centre, out=trace[step], casting="unsafe")
    return trace.reshape(steps, 2, 2, stretches).transpose(3, 0, 2, 1).reshape(stretches * steps, 4)


def change_colours(random: np.random.Generator, *, stretches: int, steps: int, colours: int) -> np.ndarray:
    """Draws the colours of two particles for each stretch; a change is always to another colour.

    Returns:
        int16 [stretches * steps, 2], one stretch after the other.
    """
    shape = (stretches, steps, 2)
    changes = random.random(shape) < COLOUR_CHANGE
    by = np.zeros(shape, np.int32)
    by[changes] = random.integers(1, colours, size=np.count_nonzero(changes))
    by[:, 0] = random.integers(colours, size=(stretches, 2))
    return (np.cumsum(by, axis=1) % colours).astype(np.int16).reshape(-1, 2)


def ask(pairs: np.ndarray, num_collisions: np.ndarray, simulated: Simulated) -> np.ndarray:
    """Chooses the questions of the hard task.

    Args:
        pairs: int16 [collisions], of all collisions that are known.
        num_collisions: int64 [steps], the number of those up to and with each step.
        simulated: the steps.

    Returns:
        int16 [steps], indices of pairs. Before the first collision no question can match it.
    """
    matching = simulated.matching & (num_collisions > 0)
    questions = simulated.questions.copy()
    questions[matching] = pairs[num_collisions[matching] - 1]
    return questions


def answer_hard(known: Collisions, num_collisions: np.ndarray, questions: np.ndarray) -> np.ndarray:
    """Finds the last collision of each question's colours.

    Args:
        known: all collisions that are known.
        num_collisions: int64 [steps], the number of those up to and with each step.
        questions: int16 [steps], indices of pairs.

    Returns:
        int16 [steps], labels.
    """
    # Collisions sorted by pair, then by time: the one sought is the last one before (pair, number of collisions).
    span = len(known.pairs) + 1
    keys = known.pairs.astype(np.int64) * span + np.arange(len(known.pairs))
    order = np.argsort(keys)
    # -1 stands for no collision; it is the first one in this order.
    pairs = np.concatenate([[-1], known.pairs[order]])
    quadrants = np.concatenate([[NO_LABEL], known.quadrants[order]])
    found = np.searchsorted(keys[order], questions.astype(np.int64) * span + num_collisions)
    return np.where(pairs[found] == questions, quadrants[found], NO_LABEL).astype(np.int16)


def answer_easy(quadrants: np.ndarray, num_collisions: np.ndarray, questions: np.ndarray) -> np.ndarray:
    """Finds the last collision, or the last three, oldest first.

    Args:
        quadrants: int16 [collisions], of all collisions that are known.
        num_collisions: int64 [steps], the number of those up to and with each step.
        questions: int16 [steps], 0 for the last collision, 1 for the last three.

    Returns:
        int16 [steps], labels.
    """
    # So many that there are always three; what they give is not used.
    padded = np.concatenate([np.zeros(SEVERAL, np.int16), quadrants])
    oldest, middle, last = (padded[num_collisions + ago] for ago in range(SEVERAL))
    answers = np.where(questions == 0, last, 4 + 16 * oldest + 4 * middle + last)
    enough = num_collisions >= np.where(questions == 0, 1, SEVERAL)
    return np.where(enough, answers, NO_LABEL).astype(np.int16)
