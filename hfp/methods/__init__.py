"""Federated methods, one per file.

Read `fedavg` first, which is a whole method in a dozen lines, then `interface.base`, which says what a method may
decide, and `interface.values` for what passes between server and client. `blocks` has the parts that several methods
share. A method, and torch with it, is loaded when it is first asked for.

A method of your own imports what it needs from here. `MeanCollector` averages updates, `keep_best` and `keep_random`
choose channels, `filter_scores` scores them, and `generator` draws the same numbers in every run of a seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfp.lazy import lazily

if TYPE_CHECKING:
    from hfp.methods.blocks.filters import filter_scores
    from hfp.methods.blocks.mean import MeanCollector
    from hfp.methods.blocks.selection import check_counts, keep_best, keep_random
    from hfp.methods.interface.base import Collector, Method
    from hfp.methods.interface.client_context import ClientContext
    from hfp.methods.interface.registry import create_method, method_names, methods, register
    from hfp.methods.interface.values import Client, MethodContext, Reply, ServerState, State, Task, TrainedPart, Update
    from hfp.reconstruct import Plan
    from hfp.seeds import generator

__all__ = [
    "Client",
    "Collector",
    "TrainedPart",
    "ClientContext",
    "MeanCollector",
    "Method",
    "Plan",
    "Reply",
    "ServerState",
    "MethodContext",
    "State",
    "Task",
    "Update",
    "check_counts",
    "create_method",
    "filter_scores",
    "generator",
    "keep_best",
    "keep_random",
    "method_names",
    "methods",
    "register",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "hfp.methods.blocks.filters": "filter_scores",
        "hfp.methods.blocks.mean": "MeanCollector",
        "hfp.methods.blocks.selection": "check_counts keep_best keep_random",
        "hfp.methods.interface.base": "Collector Method",
        "hfp.methods.interface.client_context": "ClientContext",
        "hfp.methods.interface.registry": "create_method method_names methods register",
        "hfp.methods.interface.values": ("Client MethodContext Reply ServerState State Task TrainedPart Update"),
        "hfp.reconstruct": "Plan",
        "hfp.seeds": "generator",
    },
)
