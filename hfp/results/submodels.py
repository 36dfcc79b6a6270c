"""Clients' submodels in a run's folder: the last plan of each, and the trained models where they are asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from hfp.atomic import write_atomically
from hfp.errors import InputError
from hfp.federation.exchange import Plans
from hfp.federation.setup import Federation
from hfp.methods import Method, ServerState, Update
from hfp.models.exits import WithExits, completed, with_depth
from hfp.reconstruct import Coupling, IndexMap, MapError, Plan, Pruned, compact_model, save_pruned
from hfp.results.description import ModelDescription, read_json
from hfp.results.files import CLIENTS, PLANS
from hfp.training.batch_norm import has_statistics
from hfp.training.local_step import statistics_of

FORMAT = 1
_MOST = 1_000_000  # channels of a group
RUN = "run"
"""The key of a pruned file's metadata under which it has the description of the run that it is from."""


@dataclass(frozen=True)
class StoredPlan:
    """The channels that a client trained last, by coupled group; groups that are not named keep all.

    `round` counts from 1.
    """

    client: int
    round: int
    kept: Mapping[str, tuple[int, ...]]

    def index_map(self, groups: Coupling) -> IndexMap:
        """Return which part of the full model the client's submodel is.

        Raises:
            InputError: the plan is of another model.
        """
        try:
            return groups.index_map(Plan(groups.sizes, self.kept))
        except MapError as error:
            raise InputError(f"the plan of client {self.client} is of another model: {error}") from error


class PlansFile:
    """``plans.json``, which has the last plan of every client that was ever asked.

    A run remembers only plans that it may use again, so the text of each is kept here, at a few bytes per channel.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._texts, self._sizes = folder, dict[int, str](), dict[str, int]()

    def begin(self, resumed: bool) -> None:
        """Read what a `resumed` run wrote before; the file of a run that starts anew is removed.

        Raises:
            InputError: the file is damaged or of another format version.
        """
        if not resumed:
            (self._folder / PLANS).unlink(missing_ok=True)
        elif (self._folder / PLANS).exists():
            found = _read(self._folder)
            self._sizes = dict(_sizes(self._folder, found))
            self._texts = {int(client): _compact(entry) for client, entry in found["clients"].items()}

    def write(self, plans: Plans) -> None:
        """Write the file with these plans in place of their clients' earlier ones.

        It also says how many channels each coupled group has.

        Raises:
            OSError: it can't be written.
        """
        for client, (made, _, plan) in plans.items():
            kept = {name: list(kept) for name, kept in plan.kept.items() if len(kept) < plan.sizes[name]}
            self._texts[client], self._sizes = _compact({"round": made + 1, "kept": kept}), dict(plan.sizes)
        clients = ",".join(f'"{client}":{self._texts[client]}' for client in sorted(self._texts))
        text = f'{{"format":{FORMAT},"sizes":{_compact(self._sizes)},"clients":{{{clients}}}}}\n'
        write_atomically(self._folder / PLANS, text.encode())


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def read_plan(folder: Path, client: int) -> StoredPlan:
    """Read a client's last plan.

    Raises:
        InputError: there is none, or the file is missing, damaged or of another format version.
    """
    found = _read(folder)
    entry = found["clients"].get(str(client))
    if entry is None:
        raise InputError(f"client {client} was never asked to train; the run has plans of {_ranges(found['clients'])}")
    return _plan(folder, client, entry)


def read_plans(folder: Path) -> tuple[Mapping[str, int], tuple[StoredPlan, ...]]:
    """Read how many channels each coupled group has, and every client's last plan.

    Raises:
        InputError: the file is missing, damaged or of another format version.
    """
    found = _read(folder)
    plans = tuple(_plan(folder, int(client), entry) for client, entry in found["clients"].items())
    return _sizes(folder, found), plans


def _read(folder: Path) -> dict[str, Any]:
    found: Any = read_json(folder / PLANS)
    clients = found.get("clients") if isinstance(found, dict) and found.get("format") == FORMAT else None
    if not isinstance(clients, dict) or not all(name.isdecimal() for name in clients):
        raise InputError(f"{folder / PLANS} holds no plans of format version {FORMAT}; use a matching version of hfp")
    return found


def _sizes(folder: Path, found: Mapping[str, Any]) -> Mapping[str, int]:
    sizes = found.get("sizes")
    if not isinstance(sizes, dict) or not all(type(size) is int and 0 < size <= _MOST for size in sizes.values()):
        raise InputError(f"{folder / PLANS} is damaged: sizes must be numbers of channels")
    return sizes


def _plan(folder: Path, client: int, entry: Any) -> StoredPlan:
    try:
        kept = {name: tuple(indices) for name, indices in entry["kept"].items()}
        if not all(type(index) is int for indices in kept.values() for index in indices):
            raise ValueError("channels must be whole numbers")
        return StoredPlan(client, int(entry["round"]), kept)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / PLANS} is damaged: {type(error).__name__}: {error}") from error


def client_file(folder: Path, client: int) -> Path:
    """Return the file of a client's trained model."""
    return folder / CLIENTS / f"client-{client}.safetensors"


def save_submodel(
    path: Path, model: nn.Module, index_map: IndexMap, description: ModelDescription, about: Mapping[str, Any]
) -> Path:
    """Write a compact model to a file that `hfp.load_pruned` reads, with what is needed to use it.

    Args:
        path: the file; it is replaced in one step or not at all.
        model: the compact model. Where exits don't run, the file has zeros for what only these need.
        index_map: its place in the full model.
        description: of the full model.
        about: plain values to tell where the model is from: client, round, whether it was trained.

    Raises:
        MapError: something of it can't be stored, or the file's folder is not there.
        OSError: the file can't be written.
    """
    metadata = {**about, "input": list(description.input.shape), RUN: description.as_dict()}
    state = model.state_dict()
    whole = completed(index_map, state) if isinstance(model, WithExits) else state
    return save_pruned(Pruned(whole, index_map), path, timm=description.timm, metadata=metadata)


def with_its_exits(method: Method, ratio: float, model: nn.Module, index_map: IndexMap) -> tuple[nn.Module, IndexMap]:
    """Return the compact model of a client of a ratio with no more exits than the client trains, and its map."""
    if not isinstance(model, WithExits):
        return model, index_map
    trained = cast(WithExits, method.trained_model(model, ratio))
    return trained, with_depth(index_map, trained.depth)


class ClientSaver:
    """Saves every client's model as it ended its training, each time that a reply of it comes in."""

    def __init__(self, folder: Path, federation: Federation, description: ModelDescription) -> None:
        """Make the folder for the files."""
        self._folder, self._federation, self._description = folder, federation, description
        (folder / CLIENTS).mkdir(exist_ok=True)

    def save(self, state: ServerState, update: Update) -> None:
        """Write the model that an update says the client has, with batch-norm statistics of the client's data."""
        federation, client = self._federation, update.client.index
        part = federation.method.trained_part(federation.context, state, update)
        whole = compact_model(federation.model, part.index_map, part.after).to(federation.device)
        model, index_map = with_its_exits(federation.method, update.client.ratio, whole, part.index_map)
        shard = federation.shards[client]
        if len(shard.labels) > 1 and has_statistics(model):
            with torch.random.fork_rng(devices=[]):
                statistics_of(model, shard, federation.training)
        about = {
            "client": client,
            "round": state.round + 1,
            "trained": True,
            "ratio": update.client.ratio,
            "method": federation.experiment.method,
            "dataset": federation.experiment.dataset_name,
        }
        save_submodel(client_file(self._folder, client), model.cpu(), index_map, self._description, about)


def _ranges(clients: Mapping[str, Any]) -> str:
    names = list(clients)
    return f"clients {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}" if names else "no client"
