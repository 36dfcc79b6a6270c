"""What stands between the clients' replies and the method: robust rules, then differential privacy, where asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfp.federation.experiment import asked_clients
from hfp.federation.observer import Observer
from hfp.federation.privacy import check_private, private_statistics, private_update
from hfp.federation.privacy_account import epsilon, privacy_of
from hfp.federation.robust import check_robust, defend, defended_statistics
from hfp.federation.robust_rules import parse_rules
from hfp.federation.setup import Federation
from hfp.methods import Client, ServerState, State, Update
from hfp.methods.blocks import sparse
from hfp.methods.blocks.real import check_real
from hfp.seeds import generator
from hfp.training.batch_norm import Pool, has_statistics

if TYPE_CHECKING:
    from hfp.federation.records import RoundRecord
    from hfp.federation.rounds import Outcome


class Safeguards(Observer):
    """Holds back what stands out in a round's updates, and makes the round private, as the experiment asks.

    A round with safeguards needs the memory of all its updates, because they are compared with each other or clipped
    together. Without any, updates reach the method one by one.
    """

    def __init__(self, federation: Federation, history: Sequence[RoundRecord] = ()) -> None:
        """Read what the experiment asks for.

        Args:
            federation: what stays the same over the run.
            history: the rounds that were done before, whose releases of statistics count too.

        Raises:
            InputError: the method can't run privately, or with the rules, or the model has complex parameters.
        """
        experiment = federation.experiment
        self._federation = federation
        self._rules = () if experiment.robust is None else parse_rules(experiment.robust)
        self._privacy = None if experiment.privacy is None else privacy_of(experiment.privacy)
        self._undefended = 0.0
        self._releases = sum(record.accuracy is not None for record in history) if self._estimates else 0
        if self._privacy is not None:
            check_private(federation.method)
        check_robust(self._rules, federation.method)
        if self.active:
            check_real("a run with robust rules or privacy", federation.context)

    @property
    def active(self) -> bool:
        """Whether the experiment asks for any."""
        return bool(self._rules) or self._privacy is not None

    def released(self, state: ServerState, updates: Sequence[Update]) -> Sequence[Update]:
        """Give what the method may see of a round's updates.

        Args:
            state: the server's state that the tasks were cut from.
            updates: every update of the round.
        """
        if self._rules:
            pairs = [self._as_trained(state, update) for update in updates]
            trained, masks = [update for update, _ in pairs], [whole for _, whole in pairs]
            defended = defend(self._rules, state.weights, trained, masks)
            self._undefended = defended.undefended
            updates = [
                dataclasses.replace(update, reply=after.reply)
                for update, after in zip(updates, defended.updates, strict=True)
            ]
        if self._privacy is None or not updates:
            return updates
        experiment = self._federation.experiment
        context, epochs = self._federation.context, experiment.epochs_in(state.round)
        return [private_update(self._privacy, context, state, updates, self._asked, experiment.seed, steps=epochs)]

    def _as_trained(self, state: ServerState, update: Update) -> tuple[Update, State]:
        """Return the update as if the client had been sent just what it trained: some clients prune what they get.

        Of single entries that were trained the client sends a row, or the whole tensor, whose mask is returned too.
        """
        part = self._federation.method.trained_part(self._federation.context, state, update)
        back = update.reply.tensors
        whole = {name: mask for name, mask in part.active.items() if back[name].shape == mask.shape}
        before = sparse.gather(part.before, {name: mask for name, mask in part.active.items() if name not in whole})
        task = dataclasses.replace(update.task, index_map=part.index_map, tensors=before)
        return dataclasses.replace(update, task=task), whole

    def pooled(self, state: ServerState, statistics: Iterable[tuple[Client, State]]) -> dict[str, Any]:
        """Pool the clients' batch-norm statistics of the new global model, with the same safeguards.

        Args:
            state: the new global state.
            statistics: every client's own statistics, by name.
        """
        self._releases += 1
        found = list(statistics) if self.active else statistics
        if self._privacy is not None:
            first = next((own for _, own in found), {})
            before = {name: state.weights[name] for name in first}
            random = generator(self._federation.experiment.seed, "private statistics", state.round)
            clients = len(self._federation.context.clients)
            return private_statistics(self._privacy, before, (own for _, own in found), clients, random)
        if self._rules:
            found = defended_statistics(self._rules, state.weights, list(found))
        pool = Pool()
        for client, own in found:
            pool.add(own, weight=client.samples)
        return pool.result()

    def figures(self, outcome: Outcome) -> Mapping[str, Any]:
        """Say what share of the model could not be defended, and how much privacy the run has spent."""
        found: dict[str, Any] = {"undefended": self._undefended} if self._rules else {}
        if self._privacy is not None:
            found["epsilon"] = self._spent(outcome.record.round)
        return found

    def _spent(self, rounds: int) -> float:
        assert self._privacy is not None
        return epsilon(self._privacy, self._asked, self._federation.experiment.clients, rounds, self._releases)

    @property
    def _asked(self) -> int:
        """How many clients a round asks, by which the noised sum is divided."""
        return asked_clients(self._federation.experiment.participation, self._federation.experiment.clients)

    @property
    def _estimates(self) -> bool:
        """Whether statistics of the clients become a part of the global model in each round that tests it."""
        policy = self._federation.experiment.batch_norm_policy
        return policy == "reestimate" and has_statistics(self._federation.model)
