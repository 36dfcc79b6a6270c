"""Index maps: what a pruning removed, so that the compact model can be put back into its parent, exactly."""

from hfp.reconstruct.aggregate import RULES, Aggregator
from hfp.reconstruct.compact import compact_model
from hfp.reconstruct.coupling import Coupling
from hfp.reconstruct.errors import MapError
from hfp.reconstruct.files import Pruned, PrunedFile, load_pruned, read_pruned, save_pruned
from hfp.reconstruct.index_map import IndexMap, TensorMap
from hfp.reconstruct.optimizers import embed_optimizer, restrict_optimizer
from hfp.reconstruct.plan import Plan
from hfp.reconstruct.recording import Recording, record
from hfp.reconstruct.skeletons import TimmModel

__all__ = [
    "RULES",
    "Aggregator",
    "Coupling",
    "IndexMap",
    "MapError",
    "Plan",
    "Pruned",
    "PrunedFile",
    "Recording",
    "TensorMap",
    "TimmModel",
    "compact_model",
    "embed_optimizer",
    "load_pruned",
    "read_pruned",
    "record",
    "restrict_optimizer",
    "save_pruned",
]
