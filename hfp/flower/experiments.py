"""Makes a run's experiment from its configuration on Flower, which is a flat table of plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hfp.errors import unknown
from hfp.federation.experiment import Experiment
from hfp.flower.settings import Settings, dashed, fields_of
from hfp.settings import ONE, settings_of


def experiment_from(config: Mapping[str, Any]) -> Experiment:
    """Make the experiment of a run's configuration.

    Args:
        config: names with dashes to plain values. A missing name or an empty text keeps the default. ``ratio`` and
            ``profile`` may list several values as ``"0.25,0.5"``; ``options`` and ``budget`` are pairs such as
            ``"warmup=1"``.

    Raises:
        InputError: a name isn't known, or a value can't be used.
    """
    known, others = settings_of(Experiment), settings_of(Settings)
    values = {}
    for name, value in fields_of(config).items():
        if name in others or value == "":
            continue
        if name not in known:
            raise unknown("setting", dashed(name), [dashed(other) for other in (*known, *others)])
        declared = known[name]
        several = declared.shape != ONE and isinstance(value, str)
        values[name] = declared.read(value) if several else value
    return Experiment(**values)
