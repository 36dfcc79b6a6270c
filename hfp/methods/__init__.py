"""Federated methods, one a file."""

from hfp.methods import (  # noqa: F401  (each registers itself)
    ca_hfp,
    ca_hfp_paper,
    dapperfl,
    fedavg,
    fedavgm,
    fedmp,
    fedprox,
    fedrolex,
    fjord,
    heterofl,
    prunefl,
)
from hfp.methods.interface.base import Collector, Method
from hfp.methods.interface.client_context import ClientContext
from hfp.methods.interface.registry import create_method, methods, register
from hfp.methods.interface.values import Client, MethodContext, Reply, ServerState, State, Task, TrainedPart, Update

__all__ = [
    "Client",
    "Collector",
    "TrainedPart",
    "ClientContext",
    "Method",
    "Reply",
    "ServerState",
    "MethodContext",
    "State",
    "Task",
    "Update",
    "create_method",
    "methods",
    "register",
]
