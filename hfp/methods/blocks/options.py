"""Declares the options that several methods have, without torch, so that a listing does not wait for it."""

from __future__ import annotations

from typing import Any

from hfp.settings import setting


def server_momentum_setting(default: float) -> Any:
    """Declare the option of a method that steps with momentum at the server."""
    return setting(
        default,
        "This share of a round's change of the global parameters moves them again in the next round.",
        within="[0, 1)",
    )


def calibration_setting(default: float) -> Any:
    """Declare the option of a method whose clients train with the calibrated loss."""
    return setting(
        default,
        "Each local step adds this much to the strength of the calibrated loss, which is at most 1.",
        within="[0, inf)",
    )
