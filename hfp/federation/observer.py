"""Observers are told what happens in a run. Progress, files, trackers and measurements are all observers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfp.federation.records import ClientRecord, RoundRecord, Run
    from hfp.federation.rounds import Outcome, RunState
    from hfp.federation.setup import Federation
    from hfp.methods import ServerState, Update


class Observer:
    """Is told what happens in a run. Every method does nothing by default, so a subclass defines only those it needs.

    The first call is `run_began`. In every round come `round_began`, then `update_came` and `client_done` for each
    client, and then `figures`, `round_ended` and `state_settled`. The last call is `run_ended`. All values are frozen,
    so an observer can't change the run. An exception in an observer ends the run.

    >>> class Best(Observer):
    ...     accuracy = 0.0
    ...     def round_ended(self, outcome):
    ...         self.accuracy = max(self.accuracy, outcome.record.accuracy)
    """

    def run_began(self, federation: Federation, history: Sequence[RoundRecord]) -> None:
        """The run starts; `history` has the rounds that were done before, if the run was resumed."""

    def round_began(self, state: ServerState) -> None:
        """A round starts from the server's `state`; `state.round` rounds were done before it."""

    def update_came(self, state: ServerState, update: Update) -> None:
        """A client's update was collected in the round that started from `state`."""

    def client_done(self, record: ClientRecord) -> None:
        """A client's part in the round is over, whatever came of it."""

    def figures(self, outcome: Outcome) -> Mapping[str, Any]:
        """What the observer measured, by name: it becomes part of the round's record and of the metrics file.

        `outcome` is the round without such figures. The values are numbers, text, lists, mappings or dataclasses of
        these.
        """
        return {}

    def round_ended(self, outcome: Outcome) -> None:
        """A round is over; the outcome has its whole record and the server's new state."""

    def state_settled(self, run_state: RunState) -> None:
        """All observers know that the round is over: the run can be resumed from `run_state`."""

    def run_ended(self, run: Run, finished: bool) -> None:
        """The run is over; it is not `finished` when it was interrupted or failed, and `run` has what was done."""

    @property
    def observer_state(self) -> Any:
        """What a resumed run needs of this observer: tensors, plain values and collections of them; None if nothing."""
        return None

    def restore(self, observer_state: Any) -> None:
        """Take up what `observer_state` was when the run was stopped."""
