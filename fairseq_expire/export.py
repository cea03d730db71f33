"""``python -m fairseq_expire.export CKPT DIR``: a checkpoint as a folder that ``fairseq_expire.load`` reads without fairseq."""

import argparse
from pathlib import Path
from typing import NoReturn

from fairseq_expire import __version__
from fairseq_expire.inference.checkpoint import read_checkpoint
from fairseq_expire.inference.folder import write_folder


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage, which would bury it."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def export(checkpoint: Path, dest: Path, *, data: Path | None = None, force: bool = False) -> None:
    """Write the model of a checkpoint of fairseq-train to a folder, which appears when it is complete.

    Args:
        checkpoint: its file.
        dest: the folder to make.
        data: the data-bin that it was trained on, if that is not where it was then.
        force: replace an export that is at ``dest``.
    Raises:
        FileNotFoundError: the checkpoint or the data is not there.
        ValueError: the checkpoint is damaged or holds code; there is something at ``dest``; the model cannot be described.
    """
    if not checkpoint.is_file():
        raise FileNotFoundError(f"{checkpoint}: not there; expected a checkpoint of fairseq-train")
    content = read_checkpoint(checkpoint, data)
    write_folder(dest, content.model, content.data, version=__version__, force=force)


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="python -m fairseq_expire.export", description=__doc__)
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint of fairseq-train")
    parser.add_argument("dest", metavar="DIR", help="folder to make; it appears only when it is complete")
    parser.add_argument(
        "--data", metavar="DATA-BIN", help="data with the model's dictionary (default: what it was trained on)"
    )
    parser.add_argument("--force", action="store_true", help="replace the export that is in DIR")
    args = parser.parse_args(arguments)
    try:
        export(Path(args.checkpoint), Path(args.dest), data=args.data and Path(args.data), force=args.force)
    except OSError as error:
        # An error of ours is a sentence; one of the system's has the file apart.
        parser.error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
