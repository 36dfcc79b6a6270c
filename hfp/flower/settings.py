"""What a run on Flower has beside its experiment. Torch is not imported: a ClientApp reads this."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfp.errors import InputError


@dataclass(frozen=True)
class Settings:
    """What a run on Flower has beside its experiment.

    A round starts when `quorum` of the clients are there; the first one waits for all of them up to `wait` seconds, and
    the run stops where the quorum isn't met after `wait` seconds. A round ends `round_timeout` seconds after its tasks
    went out; whoever has not answered by then is left out of it. At most `in_flight` tasks are out at once; 0 is as
    many as there are clients, in simulation twice the processors.

    `problem` names a module beside the app's pyproject.toml with the user's own data and model (`hfp.federation.problem`). `out`
    is the run's folder on the server, `resume` the folder of a run to go on with. `threads` are those that a client
    computes with, 0 for one where the model is small and PyTorch's own number where it isn't. A client's `worker` is a
    process that holds torch between rounds; without one every process that Flower starts loads torch again.
    """

    quorum: int = 1
    wait: float = 120.0
    round_timeout: float = 600.0
    in_flight: int = 0
    problem: str = ""
    out: str = ""
    resume: str = ""
    threads: int = 0
    worker: bool = True

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("wait", "round_timeout"):
            if not getattr(self, name) > 0:
                raise InputError(f"{dashed(name)} must be above 0 seconds; found {getattr(self, name)}")
        for name, least in (("quorum", 1), ("in_flight", 0), ("threads", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{dashed(name)} must be at least {least}; found {getattr(self, name)}")


def settings_from(config: Mapping[str, Any]) -> Settings:
    """The settings in a run's configuration.

    Raises:
        InputError: a value is of another type or out of its range.
    """
    own = {entry.name: entry for entry in dataclasses.fields(Settings)}
    given = {name: value for name, value in fields_of(config).items() if name in own}
    for name, value in given.items():
        expected = type(own[name].default)
        if expected is float and isinstance(value, int) and not isinstance(value, bool):
            given[name] = float(value)
        elif type(value) is not expected:
            raise InputError(f"{dashed(name)} must be of type {expected.__name__}; found {value!r}")
    return Settings(**given)


def problem_file(settings: Settings) -> Path | None:
    """Where the user's own problem is, None without one. Flower puts the app's folder first on the module path.

    Raises:
        InputError: there is no such module.
    """
    if not settings.problem:
        return None
    try:
        spec = importlib.util.find_spec(settings.problem)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise InputError(f"problem {settings.problem!r}: there is no such module beside the app's pyproject.toml")
    return Path(spec.origin)


def fields_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration under the names that fields have in Python."""
    return {str(name).replace("-", "_"): value for name, value in config.items()}


def dashed(name: str) -> str:
    """A field's name as a configuration has it."""
    return name.replace("_", "-")
