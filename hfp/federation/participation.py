"""Which clients are asked in a round, which of them drop out, and which answer too late."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from hfp.federation.experiment import Experiment
from hfp.methods import Client, Update
from hfp.seeds import generator


def asked_clients(participation: float, clients: int) -> int:
    """How many clients a round asks: a share of them, at least one."""
    return max(1, math.floor(participation * clients + 0.5))


@dataclass(frozen=True)
class CohortState:
    """The last round in which each client is `busy`, and the late updates by the round in which they arrive."""

    busy: Mapping[int, int] = field(default_factory=dict)
    arriving: Mapping[int, Sequence[Update]] = field(default_factory=dict)


class Cohort:
    """Draws who takes part, from the experiment's seed; remembers who is busy and what has yet to arrive.

    The draws depend on seed, round and client alone, so that they are the same for every method.
    """

    def __init__(
        self, experiment: Experiment, clients: Sequence[Client], cohort_state: CohortState | None = None
    ) -> None:
        self._experiment, self._clients = experiment, tuple(clients)
        cohort_state = cohort_state or CohortState()
        self._busy = dict(cohort_state.busy)
        self._arriving = {round: list(updates) for round, updates in cohort_state.arriving.items()}

    @property
    def cohort_state(self) -> CohortState:
        """Who is busy now, and what has yet to arrive."""
        return CohortState(dict(self._busy), {round: tuple(updates) for round, updates in self._arriving.items()})

    def asked(self, round: int) -> list[Client]:
        """The round's share of the clients, without those that are still busy with an earlier round."""
        count = asked_clients(self._experiment.participation, len(self._clients))
        order = torch.randperm(len(self._clients), generator=generator(self._experiment.seed, "participants", round))
        chosen = [self._clients[index] for index in sorted(order[:count].tolist())]
        return [client for client in chosen if self._busy.get(client.index, -1) < round]

    def drops_out(self, round: int, client: Client) -> bool:
        """Whether the client, once it has its task, is never heard of again in this round."""
        draw = torch.rand((), generator=generator(self._experiment.seed, "dropout", round, client.index))
        return float(draw) < self._experiment.dropout

    def admit(self, round: int, update: Update) -> bool:
        """Whether a reply is in time; one that is late and may join arrives with `arrivals` of a later round.

        Rounds are taken to last as long as the deadline: a reply that takes 1.5 of them arrives in the next round, and
        its client is busy until then.
        """
        deadline = self._experiment.deadline
        if deadline is None or update.seconds.total <= deadline:
            return True
        if self._experiment.late == "join":
            arrival = round + math.ceil(update.seconds.total / deadline) - 1
            self._busy[update.client.index] = arrival
            self._arriving.setdefault(arrival, []).append(update)
        return False

    def arrivals(self, round: int) -> list[Update]:
        """Late replies of earlier rounds that come in now, in the order in which they were sent."""
        return self._arriving.pop(round, [])
