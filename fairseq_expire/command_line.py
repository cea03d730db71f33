"""Errors of a command in one line."""

import argparse
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """A parser that ends the program with one line if something is wrong."""

    def error(self, message: str) -> NoReturn:
        """Prints the message without the usage, which would hide it."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def system_error_message(error: OSError, *, advice: str = "") -> str:
    """Returns the message of an error of the system: the file, what is wrong, and the advice.

    Python's own would begin with a number. An error of this package names no file apart from its message, which is
    complete.
    """
    return f"{error.filename}: {error.strerror}{advice}" if error.filename else str(error)
