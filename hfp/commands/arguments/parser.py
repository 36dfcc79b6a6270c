"""The command line's parser: errors are one line and name the nearest known option."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from hfp.errors import unknown


class Parser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` whose errors are one line with a suggestion, and exit with status 2."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": Formatter, **settings})

    def error(self, message: str) -> NoReturn:
        """End with status 2 and the message on standard error."""
        self.exit(2, f"{self.prog}: {message}\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse; every word must be known, because no option is ignored."""
        found, extra = super().parse_known_args(args, namespace)
        if extra:
            word = next((word for word in extra if word.startswith("-")), extra[0]).partition("=")[0]
            if not word.startswith("-"):
                self.error(f"unexpected argument {word!r}; {self.prog} --help lists what it takes")
            self.error(f"{unknown('option', word, self._option_string_actions)} ({self.prog} --help lists all)")
        return found, extra


class Formatter(argparse.HelpFormatter):
    """Names a flag's value once, after all of its names, as Python does from 3.13 on."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"
