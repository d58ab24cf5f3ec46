"""argparse's parser, for all programs: wrong usage and unwritten help are errors of ours."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConfigError
from maildirqmtp.exit_codes import EXIT_TEMPORARY

if TYPE_CHECKING:
    from typing import Any, NoReturn


def a_path(text: str) -> str:
    """Return a path of the command line. An empty one, as of an unset variable, is wrong usage."""
    if not text:
        raise argparse.ArgumentTypeError("a path is needed, not ''")
    return text


class Parser(argparse.ArgumentParser):
    """A parser that reports if --help or --version cannot be written, and exits `unwritten`.

    argparse drops that error, or leaves it to the interpreter's shutdown: exit code 0, or 120.
    """

    unwritten = EXIT_TEMPORARY

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError`; argparse would show all of the usage, and exit 2."""
        raise ConfigError(f"{message}; try {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but refuse `--flag=--`. `parse_args` calls this."""
        return super().parse_known_args(self._checked(args), namespace)

    def parse_known_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but refuse `--flag=--`. `parse_intermixed_args` calls this."""
        return super().parse_known_intermixed_args(self._checked(args), namespace)

    def _checked(self, args: Any) -> list[str]:
        """Return the words; an error if one is a flag with the value `--`.

        argparse takes such a value for the end of the options, and returns an empty list.
        """
        words = sys.argv[1:] if args is None else list(args)
        end = words.index("--") if "--" in words else len(words)
        for word in words[:end]:
            if word.startswith("--") and word.endswith("=--"):
                self.error(f"{word}: -- ends the options, and is no value")
        return words

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
