"""Closed-form repairs of a pruned model: what one pass over data can put right without training."""

from hfp.pruning.repair.apply import KINDS, checked_kinds, repair
from hfp.pruning.repair.report import LayerRepair, RepairReport

__all__ = ["KINDS", "LayerRepair", "RepairReport", "checked_kinds", "repair"]
