"""Declare what the options of the criteria mean and which values they may have.

The defaults are those of the criteria themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from hfp.errors import InputError
from hfp.importance.errors import CriterionError
from hfp.importance.registry import factory_of, place_of
from hfp.importance.sources import HOME, defaults_in_source
from hfp.settings import Setting
from hfp.settings.interval import Interval

_AT_LEAST_1 = Interval("[1, inf)")
_FISHER = {
    "empirical": "of the loss at the true labels, for any loss",
    "gauss-newton": "of the model's own predictions, for classifiers; the labels are not used",
}
OPTIONS: Mapping[str, Setting] = MappingProxyType(
    {
        "fisher": Setting(
            "The curvature is the Fisher information of this kind.",
            kind=str,
            choices={**_FISHER, "off": "none, so that the first order stands alone"},
        ),
        "first_order": Setting(
            "The score also counts the loss's first-order change in this way.",
            kind=str,
            choices={"off": "not at all", "signed": "with its sign", "absolute": "by its size in each sample"},
        ),
        "draws": Setting("Random signs are drawn this many times per sample.", kind=int, within=_AT_LEAST_1),
        "seed": Setting("Random draws start from this seed.", kind=int, within=Interval("[0, inf)")),
        "joint": Setting("Channels are chosen together, so that one that repeats another is cheap.", kind=bool),
        "repaired": Setting(
            "A removal is scored as if a repair then restored the mean of what the channel adds.", kind=bool
        ),
        "classes": Setting(
            "Only this many logits of each sample are differentiated, the largest; None takes all.",
            kind=int,
            optional=True,
            within=Interval("[2, inf)"),
        ),
        "form": Setting(
            "A weight is scored by this sum of its gradient g and curvature h.",
            kind=str,
            choices={"curvature": "h w²", "paper": "g w + h w²", "taylor": "-g w + h w² / 2"},
        ),
        "reduction": Setting(
            "A channel's score puts those of the layers that hold it together in this way.",
            kind=str,
            choices={"sum": "all count", "mean": "their mean", "max": "the largest", "first": "the pruned layer alone"},
        ),
        "probes": Setting("Random vectors are drawn this many times per batch.", kind=int, within=_AT_LEAST_1),
    }
)
_OWN = {("kronecker", "fisher"): replace(OPTIONS["fisher"], choices=_FISHER)}


def criterion_options(name: str) -> dict[str, Setting]:
    """Return the options of a criterion by name, each with its default.

    >>> criterion_options("hutchinson")["probes"].default
    1

    Raises:
        CriterionError: there is no such criterion.
    """
    found = _defaults(name)
    return {
        option: replace(_OWN.get((name, option), OPTIONS.get(option, Setting(""))), name=option, default=default)
        for option, default in found.items()
    }


def check_options(criterion: str = "", /, **options: Any) -> None:
    """Refuse values that these options do not take, of any criterion or of one that takes others.

    Raises:
        CriterionError: a value is of another kind, outside its range, or none of the choices.
    """
    try:
        for option, value in options.items():
            _OWN.get((criterion, option), OPTIONS[option]).checked(value, option)
    except InputError as error:
        raise CriterionError(str(error)) from error


def _is_bundled(name: str) -> bool:
    return (place_of(name) or "").startswith(HOME)


def _defaults(name: str) -> dict[str, Any]:
    if _is_bundled(name):
        return defaults_in_source(*str(place_of(name)).split(":"))
    parameters = inspect.signature(factory_of(name)).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not one.empty}
