"""Pass labels from the inputs of each operation to its outputs.

`labels` says what a label is. `registry` holds the rules by the operation's name. `layers` has the rules of operations
that compute, and `shapes` those of operations that arrange indices.
"""

from hfp.reconstruct.coupling.rules import layers, shapes  # noqa: F401  (they register their rules)
from hfp.reconstruct.coupling.rules.registry import Operation, rule

__all__ = ["Operation", "rule"]
