"""Decides which clients are asked in a round, which of them drop out, and which answer too late."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from hfp.federation.experiment import Experiment, asked_clients
from hfp.methods import Client, Update
from hfp.seeds import generator


@dataclass(frozen=True)
class CohortState:
    """What a cohort remembers between rounds.

    Args:
        busy: client's index to the last round in which it is busy.
        arriving: round to the late updates that arrive in it.
    """

    busy: Mapping[int, int] = field(default_factory=dict)
    arriving: Mapping[int, Sequence[Update]] = field(default_factory=dict)


class Cohort:
    """Draws who takes part, and remembers who is busy and which updates have yet to arrive.

    The draws depend only on the experiment's seed, the round and the client, so they are the same for every method.
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
        """Who is busy now, and which updates have yet to arrive."""
        return CohortState(dict(self._busy), {round: tuple(updates) for round, updates in self._arriving.items()})

    def asked(self, round: int) -> list[Client]:
        """Draw the round's share of the clients, and leave out those that are still busy with an earlier round."""
        count = asked_clients(self._experiment.participation, len(self._clients))
        order = torch.randperm(len(self._clients), generator=generator(self._experiment.seed, "participants", round))
        chosen = [self._clients[index] for index in sorted(order[:count].tolist())]
        return [client for client in chosen if self._busy.get(client.index, -1) < round]

    def drops_out(self, round: int, client: Client) -> bool:
        """Draw whether the client, once it has its task, never answers in this round."""
        draw = torch.rand((), generator=generator(self._experiment.seed, "dropout", round, client.index))
        return float(draw) < self._experiment.dropout

    def admit(self, round: int, update: Update) -> bool:
        """Tell whether a reply is in time. A late one that may join comes with the `arrivals` of a later round.

        Every round counts as long as the deadline. So a reply that takes 1.5 times as long arrives in the next round,
        and its client is busy until then.
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
        """Return the late replies of earlier rounds that arrive now, in the order in which they were sent."""
        return self._arriving.pop(round, [])
