"""How each operation passes labels from its inputs to its outputs."""

from hfp.reconstruct.coupling.rules import layers, shapes  # noqa: F401  (they register their rules)
from hfp.reconstruct.coupling.rules.registry import Operation, rule

__all__ = ["Operation", "rule"]
