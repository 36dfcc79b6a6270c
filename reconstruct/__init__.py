"""Index maps: what a pruning removed, so that the compact model can be put back into its parent, exactly."""

from hfp.reconstruct.coupling.coupling import Coupling
from hfp.reconstruct.errors import MapError
from hfp.reconstruct.files.pruned_file import Pruned, PrunedFile, load_pruned, read_pruned, save_pruned
from hfp.reconstruct.files.skeletons import TimmModel
from hfp.reconstruct.maps.aggregation import AGGREGATION_RULES, Aggregator
from hfp.reconstruct.maps.index_map import IndexMap, TensorMap
from hfp.reconstruct.maps.optimizers import embed_optimizer, restrict_optimizer
from hfp.reconstruct.maps.plan import Plan
from hfp.reconstruct.models.compact import compact_model
from hfp.reconstruct.surgery.recording import Recording, record

__all__ = [
    "AGGREGATION_RULES",
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
