"""``python -m fairseq_expire.export CKPT DIR``: exports the model of a checkpoint to a folder.

The folder holds the weights, the configuration and the dictionary: all that ``fairseq_expire.load`` needs.
"""

from pathlib import Path

from fairseq_expire import __version__
from fairseq_expire.command_line import OneLineParser, system_error_message
from fairseq_expire.inference.checkpoint import read_checkpoint
from fairseq_expire.inference.folder import write_folder


def export(checkpoint: Path, dest: Path, *, data: Path | None = None, force: bool = False) -> None:
    """Writes the model of a checkpoint to a folder, which appears when it is complete.

    Args:
        checkpoint: a checkpoint of fairseq-train.
        dest: the folder to make.
        data: a data-bin with the dictionary of its training data; None for the training data itself.
        force: replace an export that is at ``dest``.
    Raises:
        FileNotFoundError: if the checkpoint or the data does not exist.
        ValueError: if the checkpoint is damaged or holds code; if something else is at ``dest``; if only the code of
            its memory policy can make the model.
    """
    if not checkpoint.is_file():
        raise FileNotFoundError(f"{checkpoint}: not there; expected a checkpoint of fairseq-train")
    content = read_checkpoint(checkpoint, data)
    write_folder(dest, content.model, content.data, version=__version__, force=force)


def build_parser() -> OneLineParser:
    """Makes the parser of the command."""
    parser = OneLineParser(prog="python -m fairseq_expire.export", description=__doc__)
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint of fairseq-train")
    parser.add_argument("dest", metavar="DIR", help="folder to make; it appears only when it is complete")
    parser.add_argument(
        "--data", metavar="DATA-BIN", help="data with the model's dictionary (default: the training data)"
    )
    parser.add_argument("--force", action="store_true", help="replace the export that is in DIR")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        export(Path(args.checkpoint), Path(args.dest), data=args.data and Path(args.data), force=args.force)
    except OSError as error:
        parser.error(system_error_message(error))
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
