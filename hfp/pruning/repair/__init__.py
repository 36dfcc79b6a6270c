"""Closed-form repairs of a pruned model: what one pass over data can put right without training.

Read `apply` first: it chooses the layers and calls one repair after the other. `bias`, `least_squares` and `batch_norm`
are the repairs. `readers` finds the layers that lost inputs, `constants` finds where a constant can be added to a
layer, `paired` runs the full and the compact model side by side, `rows` makes a layer's inputs rows of a regression.
"""

from typing import TYPE_CHECKING

from hfp.lazy import lazily
from hfp.pruning.repair.kinds import REPAIRS

if TYPE_CHECKING:
    from hfp.pruning.repair.apply import checked_kinds, repair
    from hfp.pruning.repair.report import LayerRepair, RepairReport

__all__ = ["REPAIRS", "LayerRepair", "RepairReport", "checked_kinds", "repair"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "hfp.pruning.repair.apply": "checked_kinds repair",
        "hfp.pruning.repair.report": "LayerRepair RepairReport",
    },
)
