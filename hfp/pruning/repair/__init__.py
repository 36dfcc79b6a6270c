"""Closed-form repairs of a pruned model: what one pass over data can put right without training.

Read `apply` first: it calls one repair after the other and keeps what is better than before. `bias`, `least_squares`
and `batch_norm` are the repairs. `products` recognises the operations that multiply inputs with a weight, `following`
meets all of them in a forward pass, and `weights` tells whose weight it is and what pruning left of it. `paired` runs
the full and the compact model side by side. `reading` finds the weights that lost inputs, `constants` finds where a
constant can be added, `rows` chooses the rows of a regression, and `computed` stores weights that are computed from
others.
"""

from typing import TYPE_CHECKING

from hfp.lazy import lazily
from hfp.pruning.repair.kinds import AUTO, REPAIRS, USUAL

if TYPE_CHECKING:
    from hfp.pruning.repair.apply import checked_kinds, repair
    from hfp.pruning.repair.report import LayerRepair, RepairReport

__all__ = ["AUTO", "REPAIRS", "USUAL", "LayerRepair", "RepairReport", "checked_kinds", "repair"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "hfp.pruning.repair.apply": "checked_kinds repair",
        "hfp.pruning.repair.report": "LayerRepair RepairReport",
    },
)
