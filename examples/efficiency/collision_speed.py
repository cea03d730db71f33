"""Compares the speed of making the collision task with that of the published generator, in one run on one core.

The published one is data/gen_data_collisions.py of facebookresearch/transformer-sequential, which has a licence of its
own and is not part of this package: give the path of your copy. Both write files, with the published speed and pairs of
colours, and are called in this process, so that loading Python counts for neither. They take turns, and the medians are
compared.
"""

import argparse
import contextlib
import importlib.util
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fairseq_expire.corpora.collision import Collision
from fairseq_expire.corpora.generated import generate

SPEED = 0.5


def published_rate(gen_data: Callable[..., None], path: Path, steps: int) -> float:
    """Steps a second of the published generator."""
    options = argparse.Namespace(
        num_particles=2, num_colors=5, grid_size=16, speed=SPEED, color_change_prob=0.05, easy_q=0.4
    )
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        gen_data(options, str(path), steps)
    return steps / (time.perf_counter() - start)


def our_rate(folder: Path, steps: int) -> float:
    """Steps a second of this package, of all splits."""
    folder.mkdir()
    generator = Collision(easy=False, grid=16, colours=5, pairs="ordered", speed=SPEED, steps=steps, seed=1)
    start = time.perf_counter()
    generate(generator, folder, workers=1)
    all_steps = sum(map(generator.num_steps, ("train", "valid", "test")))
    return all_steps / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("script", type=Path, help="gen_data_collisions.py")
    parser.add_argument("--steps", type=int, default=1_000_000, help="of train, by this package")
    parser.add_argument("--published-steps", type=int, default=5_000, help="by the published generator")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    spec = importlib.util.spec_from_file_location("gen_data_collisions", args.script)
    if spec is None or spec.loader is None or not args.script.is_file():
        parser.error(f"{args.script}: expected the Python file gen_data_collisions.py")
    published = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(published)
    torch.set_num_threads(1)
    theirs, ours = [], []
    with tempfile.TemporaryDirectory() as name:
        for run in range(args.runs):
            theirs.append(published_rate(published.gen_data, Path(name, f"published{run}"), args.published_steps))
            ours.append(our_rate(Path(name, f"ours{run}"), args.steps))
    their_rate, rate = statistics.median(theirs), statistics.median(ours)
    print(f"published: {their_rate:,.0f} steps a second")
    print(f"this package: {rate:,.0f} steps a second, {60 * rate / 1e6:.1f} million a minute")
    print(f"ratio: {rate / their_rate:.0f}")


if __name__ == "__main__":
    main()
