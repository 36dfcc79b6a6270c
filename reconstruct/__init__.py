"""Index maps say what a pruning removed, so that the compact model can be put back into its parent exactly.

Read `maps` first. An `IndexMap` says which entries of a full model a compact model holds. `restrict` cuts a full state,
`embed` puts a compact one back, and an `Aggregator` merges many. `models` builds the compact model that a map
describes, and `files` stores it.

Two packages find maps, for two jobs. `surgery` records what torch-pruning cuts, whoever drives it (`record`).
`coupling` follows labels through a forward pass, without cutting anything, to know what can go and what must go
together (`Coupling`); `coupling/rules` knows this for each operation.
"""

from hfp.reconstruct.coupling.coupling import Coupling
from hfp.reconstruct.errors import MapError
from hfp.reconstruct.files.map_file import load_index_map, save_index_map
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
    "load_index_map",
    "load_pruned",
    "read_pruned",
    "record",
    "restrict_optimizer",
    "save_index_map",
    "save_pruned",
]
