"""What a run on Flower has beside its experiment. Torch is not imported, since a ClientApp reads this."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfp.errors import InputError
from hfp.federation.experiment import MOST_THREADS
from hfp.settings import setting, settings_of


@dataclass(frozen=True)
class Settings:
    """What a run on Flower has beside its experiment. Every field is declared with its default, range and meaning."""

    quorum: int = setting(
        1, "A round starts when this many of the clients are there.", within="[1, inf)", unit="clients"
    )
    wait: float = setting(
        120.0,
        "The run waits this long for all clients at first, and stops where the quorum is not met for as long.",
        within="(0, inf)",
        unit="seconds",
    )
    round_timeout: float = setting(
        600.0,
        "A round ends this long after its tasks went out, without the clients that have not answered.",
        within="(0, inf)",
        unit="seconds",
    )
    in_flight: int = setting(
        0,
        "At most this many tasks are out at once; 0 is one per client, and in simulation twice the processors.",
        within="[0, inf)",
        unit="tasks",
    )
    problem: str = setting(
        "",
        "The user's own data and model are in this module beside the app's pyproject.toml (`hfp.federation.problem`).",
        unit="module",
    )
    out: str = setting("", "The run's results are written to this folder on the server.", unit="folder")
    resume: str = setting("", "The run goes on with the one in this folder, whatever out is.", unit="folder")
    threads: int = setting(
        0,
        "A client computes with this many threads; 0 is one where the model is small, else PyTorch's own number.",
        within=f"[0, {MOST_THREADS}]",
        unit="threads",
    )
    keys: str = setting(
        "",
        "Only the node that is registered with the public key node-K.pub in this folder may be client K.",
        unit="folder",
    )
    worker: bool = setting(
        True,
        "A process keeps torch loaded between a client's rounds; otherwise every process of Flower's loads it again.",
    )

    def __post_init__(self) -> None:
        """Check every field, under the name that a configuration has for it."""
        for name, declared in settings_of(self).items():
            object.__setattr__(self, name, declared.checked(getattr(self, name), dashed(name)))


def settings_from(config: Mapping[str, Any]) -> Settings:
    """Read the settings in a run's configuration.

    Raises:
        InputError: a value is of another kind or out of its range.
    """
    return Settings(**{name: value for name, value in fields_of(config).items() if name in settings_of(Settings)})


def problem_file(settings: Settings) -> Path | None:
    """Find the file of the user's own problem, None without one. Flower puts the app's folder on the module path.

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
    """Return the configuration under the names that fields have in Python."""
    return {str(name).replace("-", "_"): value for name, value in config.items()}


def dashed(name: str) -> str:
    """Return a field's name as a configuration has it."""
    return name.replace("_", "-")
