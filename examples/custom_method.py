"""A federated method of your own in thirty lines: keep the channels whose weights moved most (Δw, arXiv 2603.12591).

    python examples/custom_method.py --rounds 15

Once it is registered it is a method like any other, for `hfp.Experiment` and for comparisons.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import hfp
from hfp.methods import (
    Client,
    MeanCollector,
    Method,
    MethodContext,
    Plan,
    ServerState,
    check_counts,
    filter_scores,
    generator,
    keep_best,
    keep_random,
    register,
)


@register
@dataclass(frozen=True)
class DeltaW(Method):
    """Random submodels in the first round; then, in every layer, the channels whose weights changed most."""

    name: ClassVar[str] = "delta-w"
    source: ClassVar[str] = "arXiv 2603.12591, table II"
    summary: ClassVar[str] = "each client trains the channels whose weights moved most in the last round"

    def check(self, context: MethodContext) -> None:
        """Every client keeps a channel of every layer."""
        check_counts(context)

    def plan(self, context: MethodContext, state: ServerState, client: Client) -> Plan:
        """Choose a client's channels; what the method remembers are the channels' scores, after the first round."""
        if state.method_state is None:
            return keep_random(context.groups, client.ratio, generator(context.seed, "mask", client.index))
        return keep_best(context.groups, client.ratio, state.method_state)

    def collect(self, context: MethodContext, state: ServerState) -> Moved:
        """Average the updates, then see what moved."""
        return Moved(context, state)


class Moved(MeanCollector):
    """Entries that a client did not train count with their global value, and channels are scored by ``Σ |Δw|``."""

    def __init__(self, context: MethodContext, state: ServerState) -> None:
        super().__init__(state, rule="fill")
        self._context, self._before = context, state.weights

    def finish(self) -> ServerState:
        """Return the next state, with the channels' scores as what the method remembers."""
        after = super().finish()
        moved = {name: weight - self._before[name] for name, weight in after.weights.items()}
        return dataclasses.replace(after, method_state=filter_scores(self._context.groups, self._context.model, moved))


def main() -> None:
    """Compare it with others on the same data, weights and batches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=None, help="training images (default: all digits)")
    given = parser.parse_args()
    for method in ("delta-w", "ca-hfp", "fedmp"):
        run = hfp.simulate(hfp.Experiment(method=method, rounds=given.rounds, train_images=given.images, rank=2))
        print(f"{method}: {run.accuracy:.1f} % of the test images, {run.bytes_up / 1e6:.1f} MB sent by clients")


if __name__ == "__main__":
    main()
