"""Generate the collision task: two particles move on a grid; name the quadrant of a collision long ago.

A step has the places of both particles, their colours, and a question that names two colours. The label stands at the
question's last symbol: the quadrant of the last collision of those colours. With --easy there are no colours.
"""

import argparse
from typing import Any

from fairseq_expire.fairseq_version import require_for_command

# Before the imports that need fairseq.
require_for_command("collision.py")

from fairseq_expire.corpora.collision import COLOURS, GRID, PAIRS, SPEED, STEPS, Collision  # noqa: E402
from fairseq_expire.corpora.command import positive  # noqa: E402
from fairseq_expire.corpora.generated_command import GeneratorParser  # noqa: E402


def build_parser() -> GeneratorParser:
    parser = GeneratorParser(
        corpus=Collision.corpus, make_generator=Collision, prog="collision.py", description=__doc__
    )
    parser.add_argument(
        "--steps",
        type=positive,
        default=STEPS,
        metavar="N",
        help=f"number of steps of train; valid and test have a tenth each (default: {STEPS})",
    )
    parser.add_argument(
        "--easy", action="store_true", help="no colours: questions are about the last collision or the last three"
    )
    parser.add_argument(
        "--pairs",
        choices=PAIRS,
        help="the order of the colours in a question: any, or that of the first particle first (default: unordered)",
    )
    parser.add_argument(
        "--speed",
        type=float,
        default=SPEED,
        metavar="S",
        help=f"standard deviation of the velocities, in places a step (default: {SPEED:g})",
    )
    parser.add_argument(
        "--grid", type=positive, default=GRID, metavar="N", help=f"places in a row and a column (default: {GRID})"
    )
    parser.add_argument("--colours", type=positive, metavar="N", help=f"number of colours (default: {COLOURS})")
    return parser


def parameters(args: argparse.Namespace) -> dict[str, Any]:
    colours, pairs = args.colours, args.pairs
    if not args.easy:
        colours, pairs = colours or COLOURS, pairs or PAIRS[0]
    return {
        "easy": args.easy,
        "grid": args.grid,
        "colours": colours,
        "pairs": pairs,
        "speed": args.speed,
        "steps": args.steps,
        "seed": args.seed,
    }


def main(arguments: list[str] | None = None) -> None:
    build_parser().run_generator(parameters, arguments)


if __name__ == "__main__":
    main()
