"""Index maps: what a pruning removed, so that the compact model can be put back into its parent, exactly."""

from hfp.reconstruct.aggregate import Aggregator
from hfp.reconstruct.compact import compact_model
from hfp.reconstruct.errors import MapError
from hfp.reconstruct.groups import ChannelGroups
from hfp.reconstruct.index_map import IndexMap, TensorMap
from hfp.reconstruct.plan import Plan
from hfp.reconstruct.recording import Recording, record

__all__ = [
    "Aggregator",
    "ChannelGroups",
    "IndexMap",
    "MapError",
    "Plan",
    "Recording",
    "TensorMap",
    "compact_model",
    "record",
]
