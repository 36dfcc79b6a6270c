"""The commands that README.md prints: what the tests and .ci/run read them from, so that they can't drift apart."""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def commands(readme: Path = README) -> list[str]:
    """Every command line in the README's shell blocks; a line that ends in a backslash goes on."""
    lines = "".join(_blocks("bash", readme)).replace("\\\n", " ").splitlines()
    return [" ".join(line.split(" #")[0].split()) for line in lines if line.strip() and not line.startswith("#")]


def python_blocks(readme: Path = README) -> list[str]:
    """The README's Python."""
    return _blocks("python", readme)


def setup_command(which: str, readme: Path = README) -> str:
    """The set-up command that runs the main job (`which` is "run") or the tests ("test")."""
    ends = {"run": "&& hfp run", "test": "&& pytest"}[which]
    found = [command for command in commands(readme) if command.endswith(ends)]
    if len(found) != 1:
        raise SystemExit(f"README must print exactly one command that ends in {ends!r}; found {found}")
    return found[0]


def _blocks(language: str, readme: Path) -> list[str]:
    pattern = rf"^```{language}\n(.*?)^```"
    return re.findall(pattern, readme.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


if __name__ == "__main__":
    print(setup_command(sys.argv[2], Path(sys.argv[1])))
