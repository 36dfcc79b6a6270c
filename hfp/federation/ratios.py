"""Finds the ratio that a client's submodel needs to keep within the client's budget."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

import torch
from torch import nn

from hfp.costs.devices import Device
from hfp.costs.macs import TRAINING_FACTOR, MacCounter, parameters
from hfp.costs.payload import packed_bytes
from hfp.errors import InputError
from hfp.methods.blocks.selection import keep_best, kept_counts
from hfp.reconstruct import Coupling, compact_model


class RatioFinder:
    """Finds the smallest ratio, in steps of a hundredth, whose submodel keeps within given limits.

    Limits are those of `hfp.federation.experiment.BUDGET_LIMITS`. A submodel that loses the share ``ratio`` of every
    coupled group's channels is sent down and up once per round.
    """

    def __init__(self, model: nn.Module, groups: Coupling, example: torch.Tensor) -> None:
        self._model, self._groups, self._count = model, groups, MacCounter(example)
        self._costs: dict[float, tuple[int, int, int]] = {}
        self._ratios = [percent / 100 for percent in range(100) if self._leaves_channels(percent / 100)]

    def find(self, limits: Mapping[str, float], device: Device, samples: int, client: int) -> float:
        """Find the ratio of a client that trains on `samples` images per round, where every epoch counts.

        Raises:
            InputError: even the smallest submodel is over a limit.
        """
        position = bisect_left(self._ratios, True, key=lambda ratio: not self._over(limits, device, samples, ratio))
        if position == len(self._ratios):
            last = self._ratios[-1]
            over = self._over(limits, device, samples, last)
            raise InputError(
                f"client {client} can't keep within {', '.join(f'{name}={limits[name]:g}' for name in over)}: with "
                f"{last:.0%} of the channels removed it needs "
                + ", ".join(f"{name}={value:.3g}" for name, value in over.items())
            )
        return self._ratios[position]

    def _over(self, limits: Mapping[str, float], device: Device, samples: int, ratio: float) -> dict[str, float]:
        """Return what a submodel needs of the limits that it breaks."""
        full_macs, full_parameters, _ = self._cost(0.0)
        macs, size, message = self._cost(ratio)
        needs = {
            "macs": macs / full_macs,
            "params": size / full_parameters,
            "bytes": 2 * message,
            "seconds": device.seconds(message, TRAINING_FACTOR * macs * samples, message).total,
        }
        return {name: needs[name] for name, limit in limits.items() if needs[name] > limit}

    def _cost(self, ratio: float) -> tuple[int, int, int]:
        """Count the multiply-accumulates, parameters and bytes of a submodel."""
        if ratio not in self._costs:
            scores = {name: torch.zeros(size) for name, size in self._groups.sizes.items()}
            index_map = self._groups.index_map(keep_best(self._groups, ratio, scores))
            model = compact_model(self._model, index_map)
            self._costs[ratio] = self._count(model), parameters(model), packed_bytes(model.state_dict())
        return self._costs[ratio]

    def _leaves_channels(self, ratio: float) -> bool:
        try:
            kept_counts(self._groups, ratio)
        except InputError:
            return False
        return True
