"""Federated methods, one a file."""

from hfp.methods import ca_hfp, fedavg  # noqa: F401  (each registers itself)
from hfp.methods.base import Client, Collector, Method, ServerState, Setting, State, Update
from hfp.methods.registry import create_method, methods, register

__all__ = [
    "Client",
    "Collector",
    "Method",
    "ServerState",
    "Setting",
    "State",
    "Update",
    "create_method",
    "methods",
    "register",
]
