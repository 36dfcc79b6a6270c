"""Finds the ratio that a client's submodel needs to keep within the client's budget."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from functools import cached_property, partial
from itertools import groupby

import torch
from torch import nn

from hfp.costs.devices import Device
from hfp.costs.macs import TRAINING_FACTOR, MacCounter, parameters
from hfp.costs.memory import PeakBytesCounter
from hfp.costs.payload import packed_bytes
from hfp.errors import InputError
from hfp.methods import Method
from hfp.reconstruct import Coupling, compact_model


class RatioFinder:
    """Finds the smallest ratio, in steps of a hundredth, whose submodel keeps within given limits.

    Limits are those of `hfp.federation.experiment.BUDGET_LIMITS`, and the memory of a device that has a figure for it.
    What a client of a ratio trains with `method` is sent down and up once per round, and trained on batches of
    `batch_size`.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Coupling,
        example: torch.Tensor,
        batch_size: int,
        method: Method,
    ) -> None:
        self._model, self._groups, self._method, self._count = model, groups, method, MacCounter(example)
        self._count_peak_bytes, self._batch_size = PeakBytesCounter(example), batch_size
        self._costs: dict[float, tuple[int, int, int]] = {}

    @cached_property
    def _ratios(self) -> list[float]:
        return [percent / 100 for percent in range(100) if self._leaves_channels(percent / 100)]

    def find(self, limits: Mapping[str, float], device: Device, samples: int, client: int) -> float:
        """Find the ratio of a client that trains on `samples` images per round, where every epoch counts.

        Raises:
            InputError: even the smallest submodel is over a limit.
        """
        return self._at(self._first_within(limits, device, samples), limits, device, samples, client)

    def fitting(self, ratio: float, device: Device, client: int) -> float:
        """Return a client's ratio where its submodel fits the device's memory, else the smallest ratio that does.

        Raises:
            InputError: even the smallest submodel is too large.
        """
        if not self._over({}, device, 0, ratio):
            return ratio
        fits = self._first_within({}, device, 0, start=bisect_left(self._ratios, ratio))
        return self._at(fits, {}, device, 0, client)

    def _first_within(self, limits: Mapping[str, float], device: Device, samples: int, start: int = 0) -> int:
        """Return the first position in the list, from `start` on, whose ratio keeps within limits; its end if none."""
        stage = partial(self._method.stage, self._model)
        for _, ratios in groupby(self._ratios[start:], stage):
            end = start + len(list(ratios))
            found = bisect_left(
                self._ratios, True, start, end, key=lambda ratio: not self._over(limits, device, samples, ratio)
            )
            if found < end:
                return found
            start = end
        return start

    def _at(self, position: int, limits: Mapping[str, float], device: Device, samples: int, client: int) -> float:
        """Return the ratio at a position of the list, if it has one.

        Raises:
            InputError: it has not, because even the smallest submodel is over a limit.
        """
        if position == len(self._ratios):
            last = self._ratios[-1]
            over = self._over(limits, device, samples, last)
            most = {**limits, "memory": device.memory}
            raise InputError(
                f"client {client} can't keep within {', '.join(f'{name}={most[name]:g}' for name in over)}: at a "
                f"ratio of {last:g} it needs " + ", ".join(f"{name}={value:.3g}" for name, value in over.items())
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
        over = {name: needs[name] for name, limit in limits.items() if needs[name] > limit}
        if device.memory is not None and (kept := self._peak_bytes(ratio)) > device.memory:
            over["memory"] = kept
        return over

    def _cost(self, ratio: float) -> tuple[int, int, int]:
        """Count the multiply-accumulates, parameters and bytes of a submodel."""
        if ratio not in self._costs:
            model = self._submodel(ratio)
            self._costs[ratio] = self._count(model), parameters(model), packed_bytes(model.state_dict())
        return self._costs[ratio]

    def _peak_bytes(self, ratio: float) -> int:
        """Count the bytes that training a submodel keeps."""
        return self._count_peak_bytes(self._submodel(ratio), self._batch_size)

    def _submodel(self, ratio: float) -> nn.Module:
        index_map = self._groups.index_map(self._method.sized(self._model, self._groups, ratio))
        return self._method.trained_model(compact_model(self._model, index_map), ratio)

    def _leaves_channels(self, ratio: float) -> bool:
        try:
            self._method.sized(self._model, self._groups, ratio)
        except InputError:
            return False
        return True
