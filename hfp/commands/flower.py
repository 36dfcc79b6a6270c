"""``hfp flower up``: a SuperLink and nodes on this machine, to try a deployment out; stopped with the command."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfp.commands.interruption import SIGNALS, status
from hfp.errors import InputError
from hfp.flower import require_flower

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from hfp.flower.local import LocalDeployment

LOOK = 0.5
"""Seconds that pass between two looks at whether all processes are still there."""
PATHS = ("out", "resume", "data-root", "weights", "keys")
"""Settings that are paths. The SuperLink works in a folder of its own, so relative ones are made absolute here."""


def run(arguments: argparse.Namespace) -> int:
    """Start, show how to use it, and wait; 0 when a run ended well, 1 when it didn't, 128 and the signal when stopped.

    Raises:
        InputError: Flower isn't installed, the app can't be read, or something doesn't start.
    """
    require_flower()
    from hfp.flower.local import LocalDeployment

    with ExitStack() as stack:
        stack.enter_context(_handlers_restored())
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hfp-flower-")))
        deployment = LocalDeployment(folder, secure=arguments.secure, simulation=arguments.simulation)
        stack.enter_context(deployment)
        try:
            return _serve(deployment, arguments, stack)
        except KeyboardInterrupt as stop:
            for number in SIGNALS:  # a second one would end this process alone, and leave the others running
                signal.signal(number, signal.SIG_IGN)
            print("stopping", flush=True)
            return status(stop)


def _serve(deployment: LocalDeployment, arguments: argparse.Namespace, stack: ExitStack) -> int:
    deployment.start_link()
    if not arguments.simulation:
        deployment.start_nodes(arguments.nodes)
    nodes = arguments.nodes if arguments.simulation else None
    fresh = Path("runs").resolve() / f"{datetime.now():%Y%m%d-%H%M%S}-flower"
    config = [f"clients={arguments.nodes} out={json.dumps(str(fresh))}"]
    config += [*paths_of_app(arguments.run), *(with_absolute_paths(part) for part in arguments.run_config)]
    print(f"SuperLink on {deployment.address}, {arguments.nodes} nodes; logs in {deployment.folder}", flush=True)
    if not arguments.secure:
        print("Every user of this machine can run code on these nodes; see --secure.", flush=True)
    app = arguments.run.resolve() if arguments.run is not None else Path("APP")
    if arguments.secure and (arguments.run is None or "keys" in _configuration(app)):
        config.insert(1, f"keys={json.dumps(str(deployment.folder))}")
    words = deployment.run_words(app, config, nodes)
    if arguments.run is None:
        print("in another terminal, with the folder of an app:")
        print(f"  FLWR_HOME={shlex.quote(str(deployment.home))} {shlex.join(words)}", flush=True)
        while True:
            _check(deployment)
            time.sleep(LOOK)
    process = deployment.start(words, "run", here=True)
    stack.callback(deployment.stop, process)
    return 0 if process.wait() == 0 and deployment.last_run_completed() else 1


def with_absolute_paths(config: str) -> str:
    """Make relative paths in a run's configuration absolute, from where the command was started.

    >>> with_absolute_paths('rounds=2 out="/tmp/mine"')
    'rounds=2 out="/tmp/mine"'
    """

    def absolute(match: re.Match[str]) -> str:
        name, text = match["name"], match["text"]
        return match[0] if not text else f"{match['before']}{name}={json.dumps(str(Path(text).resolve()))}"

    return re.sub(rf"(?P<before>^|\s)(?P<name>{'|'.join(PATHS)})\s*=\s*([\"'])(?P<text>.*?)\3", absolute, config)


def paths_of_app(app: Path | None) -> list[str]:
    """Read the relative paths in an app's own configuration, as absolute ones from where the command was started.

    Raises:
        InputError: the app's pyproject.toml can't be read.
    """
    if app is None:
        return []
    config = _configuration(app)
    given = ((name, config.get(name)) for name in PATHS)
    return [f"{name}={json.dumps(str(Path(text).resolve()))}" for name, text in given if isinstance(text, str) and text]


def _configuration(app: Path) -> dict[str, Any]:
    """Read what an app declares of its configuration; Flower refuses to set what is not declared."""
    try:
        found = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{app / 'pyproject.toml'} can't be read: {error}") from error
    for name in ("tool", "flwr", "app", "config"):
        found = found.get(name, {})
        if not isinstance(found, dict):
            raise InputError(f"{name} in {app / 'pyproject.toml'} must be a table; found {found!r}")
    return found


def _check(deployment: LocalDeployment) -> None:
    for name, process in {"superlink": deployment.link, **deployment.nodes}.items():
        if process.poll() is not None:
            raise InputError(f"{name} has ended; see {deployment.log(name)}")


@contextlib.contextmanager
def _handlers_restored() -> Iterator[None]:
    """Put the handlers of signals back at the end."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
