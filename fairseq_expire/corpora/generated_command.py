"""The command line that the scripts of generated corpora with labels share."""

import argparse
import sys
from collections.abc import Callable

from fairseq_expire.corpora.command import Parser, Progress
from fairseq_expire.corpora.generated import Generator, count_parts, generate, restore_generated, verify_generated
from fairseq_expire.files import new_folder
from fairseq_expire.tokenizers.manifest import FILE_NAME, LabelledManifest, read_labelled_manifest


class GeneratorParser(Parser):
    """A parser for a corpus that is generated, with ``--seed``, ``--restore`` and ``--labels``.

    Args:
        corpus: its name, as in the manifest.
        make_generator: called with the parameters of a manifest as keywords; raises ValueError if one is wrong.
        prog: name of the script.
        description: its description.
    """

    def __init__(self, *, corpus: str, make_generator: Callable[..., Generator], prog: str, description: str | None):
        super().__init__(prog=prog, description=description)
        self._corpus, self._make_generator = corpus, make_generator
        self.add_argument("--seed", type=natural, default=1, metavar="N", help="of the random numbers (default: 1)")
        self.add_argument(
            "--restore",
            nargs=2,
            metavar=("DIR", "SPLIT"),
            help="instead of making data: write the symbols of DIR's SPLIT to stdout, one a line",
        )
        self.add_argument(
            "--labels",
            action="store_true",
            help="with --restore: the labels instead, one a line, <pad> where none counts",
        )

    def run_generator(
        self, parameters: Callable[[argparse.Namespace], dict], arguments: list[str] | None = None
    ) -> None:
        """Makes, verifies or restores data, as the options say.

        Args:
            parameters: called with the options; returns the keywords for ``make_generator``.
            arguments: the command line; None for this process's own.
        """

        def make(args: argparse.Namespace) -> None:
            if args.restore:
                folder, split = args.restore
                for lines in restore_generated(folder, split=split, labels=args.labels):
                    sys.stdout.buffer.write(lines)
                sys.stdout.buffer.flush()
                return
            _refuse_labels(args)
            if not args.dest:
                raise ValueError("--dest is missing; give the folder to make")
            generator = self._make_generator(**parameters(args))
            with (
                new_folder(args.dest, mark=FILE_NAME, force=args.force) as folder,
                Progress(count_parts(generator), unit="part") as progress,
            ):
                manifest = generate(generator, folder, workers=args.workers, on_progress=progress.advance)
            print(labelled_table(manifest))

        self.run(make, arguments)

    def verify(self, args: argparse.Namespace) -> None:
        """See :meth:`Parser.verify`."""
        _refuse_labels(args)
        manifest = read_labelled_manifest(args.verify)
        # A part is an item.
        total = manifest and sum(counts.items for counts in manifest.splits.values())
        options = {"workers": args.workers}
        with Progress(total, unit="part") as progress:
            lines = list(verify_generated(self._generator_of, args.verify, on_progress=progress.advance, **options))
        print("\n".join(lines))

    def _generator_of(self, manifest: LabelledManifest) -> Generator:
        if manifest.corpus != self._corpus:
            raise ValueError(
                f"--verify: the data is {manifest.corpus}, and {self.prog} makes {self._corpus}; verify it with the "
                "script that made it"
            )
        try:
            return self._make_generator(**manifest.parameters)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{FILE_NAME} has wrong parameters ({error}); make the data again") from None


def _refuse_labels(args: argparse.Namespace) -> None:
    if args.labels:
        raise ValueError("--labels is for --restore; leave it out")


def natural(text: str) -> int:
    """Parses a number from 0 on. Raises argparse.ArgumentTypeError if it is none."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return int(text)


def labelled_table(manifest: LabelledManifest) -> str:
    """A table with a row for each split, then a line on the dictionaries."""
    rows = [("split", "tokens", "labels")]
    rows += [(name, counts.tokens, counts.labels) for name, counts in manifest.splits.items()]
    lines = [f"{row[0]:<6}" + "".join(f"{column:>15}" for column in row[1:]) for row in rows]
    lines.append(f"{manifest.symbols} symbols and {manifest.labels} labels in the dictionaries")
    return "\n".join(lines)
