"""When a run is over, and why."""

from __future__ import annotations

from collections.abc import Sequence


def why_ended(accuracies: Sequence[float | None], rounds: int, patience: int) -> str:
    """Say why a run is over; an empty text where it goes on.

    It is over after `rounds` rounds. With a `patience` above 0 it is also over where the global model was tested just
    now, and the best accuracy so far was reached that many rounds ago or earlier.

    Args:
        accuracies: the global model's test accuracy after each round that was done, None where it was not tested.
        rounds: how many rounds were asked for.
        patience: how many rounds may pass without a better accuracy; 0 is any number.

    >>> why_ended([50.0, 70.0, 60.0], rounds=30, patience=2)
    ''
    >>> why_ended([50.0, 70.0, 60.0, 70.0], rounds=30, patience=2)
    'no test was better than 70.00 % in round 2, and 2 rounds have passed since'
    >>> why_ended([50.0, 70.0], rounds=2, patience=2)
    'all 2 rounds are done'
    """
    done = len(accuracies)
    if done >= rounds:
        return f"all {rounds} rounds are done" if rounds > 1 else "its one round is done"
    if not patience or not done or accuracies[-1] is None:
        return ""
    best = max(accuracy for accuracy in accuracies if accuracy is not None)
    since = done - 1 - accuracies.index(best)
    if since < patience:
        return ""
    passed = f"{since} rounds have" if since > 1 else "1 round has"
    return f"no test was better than {best:.2f} % in round {done - since}, and {passed} passed since"
