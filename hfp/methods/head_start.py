"""More local epochs in the first rounds, fewer from round to round (Mills et al. 2023, arXiv 2305.09628)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hfp.errors import InputError
from hfp.methods.base import Client, Method, ServerState, Setting, Task
from hfp.methods.local import Local
from hfp.reconstruct import Plan

TIMES = "times"


@dataclass(frozen=True)
class HeadStart(Method):
    """The first round trains `head_start` times the usual epochs, each later one `head_start_decay` of that before it.

    No round trains less than usual, and a `head_start` of 1 is none. Where rounds are bounded in time
    (`Setting.timed`) none is longer than the others: a device that has just enough of it would miss them all.
    """

    head_start: float = 1.0
    head_start_decay: float = 0.85

    def check_head_start(self) -> None:
        """Refuse options out of range.

        Raises:
            InputError: `head_start` is below 1 or not finite, or `head_start_decay` isn't in [0, 1).
        """
        if not (math.isfinite(self.head_start) and self.head_start >= 1):
            raise InputError(f"head_start must be a finite number of at least 1; found {self.head_start}")
        if not 0 <= self.head_start_decay < 1:
            raise InputError(f"head_start_decay must be in [0, 1); found {self.head_start_decay}")

    def times(self, setting: Setting, state: ServerState) -> int:
        """How many times the usual epochs a client trains in the coming round."""
        return 1 if setting.timed else max(1, round(self.head_start * self.head_start_decay**state.round))

    def send(self, setting: Setting, state: ServerState, client: Client, plan: Plan) -> Task:
        """The compact state, and how many times the usual epochs, where that is not once."""
        task, times = super().send(setting, state, client, plan), self.times(setting, state)
        return dataclasses.replace(task, values={**task.values, TIMES: float(times)}) if times > 1 else task

    def schedule(self, local: Local, task: Task) -> Sequence[Tensor]:
        """At the client: as many times the usual epochs as the task asks for, each in an order of its own."""
        return [batch for _ in range(int(task.values.get(TIMES, 1))) for batch in local.schedule()]
