"""A federated method of your own in thirty lines: keep the channels whose weights moved most (Δw, arXiv 2603.12591).

    python examples/custom_method.py --rounds 15

Once registered it is a method like any other, for `hfp.Experiment` and for comparisons.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import hfp
from hfp.comparison.definition import Comparison, variants_of
from hfp.comparison.runs import result_of
from hfp.comparison.table import gather, markdown, rows
from hfp.methods import Client, Method, MethodContext, ServerState, register
from hfp.methods.blocks.filters import filter_scores
from hfp.methods.blocks.mean import MeanCollector
from hfp.methods.blocks.selection import check_counts, keep_best, keep_random
from hfp.reconstruct import Plan
from hfp.seeds import generator


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
        """Which channels a client trains; the memory has their scores after the first round."""
        if state.method_state is None:
            return keep_random(context.groups, client.ratio, generator(context.seed, "mask", client.index))
        return keep_best(context.groups, client.ratio, state.method_state)

    def collect(self, context: MethodContext, state: ServerState) -> Moved:
        """Average, then see what moved."""
        return Moved(context, state)


class Moved(MeanCollector):
    """Entries that a client did not hold count with their global value, and channels are scored by ``Σ |Δw|``."""

    def __init__(self, context: MethodContext, state: ServerState) -> None:
        super().__init__(state, rule="fill")
        self._setting, self._before = context, state.weights

    def finish(self) -> ServerState:
        """The next state, with the channels' scores as its memory."""
        after = super().finish()
        moved = {name: weight - self._before[name] for name, weight in after.weights.items()}
        return dataclasses.replace(after, method_state=filter_scores(self._setting.groups, self._setting.model, moved))


def main() -> None:
    """Compare it with others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=None, help="training images (default: all digits)")
    arguments = parser.parse_args()
    base = {"rounds": arguments.rounds, "train_images": arguments.images}
    comparison = Comparison(variants_of(["delta-w", "ca-hfp", "fedmp"]), base, seeds=(0,), ranks=(2,))
    runs = gather(comparison, lambda cell: result_of(hfp.simulate(cell.experiment)))
    print(markdown(rows(comparison, runs)))


if __name__ == "__main__":
    main()
