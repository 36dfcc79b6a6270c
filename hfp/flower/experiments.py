"""A run's experiment from its configuration, as Flower gives it: flat, with plain values, text for what has several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hfp.errors import unknown
from hfp.federation.experiment import Experiment
from hfp.flower.settings import Settings, dashed, fields_of
from hfp.settings import ONE, settings_of


def experiment_from(config: Mapping[str, Any]) -> Experiment:
    """The experiment in a run's configuration. Empty texts count as not given; what isn't there keeps its default.

    ``ratio`` and ``profile`` may list several, ``"0.25,0.5"``; ``options`` and ``budget`` are pairs, ``"warmup=1"``.

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
