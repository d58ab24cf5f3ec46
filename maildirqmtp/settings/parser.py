"""argparse's parser, for all programs: wrong usage and unwritten help are errors of ours."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConfigError
from maildirqmtp.exit_codes import EXIT_TEMPORARY

if TYPE_CHECKING:
    from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """A parser that reports if --help or --version cannot be written, and exits `unwritten`.

    argparse drops that error, or leaves it to the interpreter's shutdown: exit code 0, or 120.
    """

    unwritten = EXIT_TEMPORARY

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError`; argparse would show all of the usage, and exit 2."""
        raise ConfigError(f"{message}; try {self.prog} --help")

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is None or file is not sys.stdout:
            super()._print_message(message, file)
            return
        try:
            sys.stdout.write(message)
            sys.stdout.flush()
        except BrokenPipeError:  # as with head(1): nobody reads the rest
            self.exit(self.unwritten)
        except OSError as error:
            self.exit(self.unwritten, f"{self.prog}: standard output: {error.strerror}\n")
