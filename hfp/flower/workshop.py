"""The client's side with torch in it, which answers letters from a client's data for as long as its process lives."""

from __future__ import annotations

import dataclasses
import json
import traceback
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from hfp.costs.payload import layout
from hfp.errors import InputError
from hfp.federation import wire
from hfp.federation.client_runner import Clients
from hfp.federation.letter import Letter
from hfp.federation.problem import load_problem
from hfp.federation.setup import Federation, set_up, set_up_own, with_data_of
from hfp.federation.threads import use_threads
from hfp.flower.experiments import experiment_from
from hfp.flower.settings import settings_from
from hfp.methods import Client, State
from hfp.reconstruct import MapError

OWN_CLIENTS = 4  # clients whose own data one process keeps; in simulation it serves any of them

AnswerAndKept = tuple[Letter, Letter | None]


class Workshop:
    """Answers letters to the clients of one run."""

    def __init__(self, config: Mapping[str, Any], problem: str | None) -> None:
        """Read the configuration; data is loaded when a client is first asked.

        Raises:
            InputError: the configuration can't be used.
        """
        self._experiment, self._settings = experiment_from(config), settings_from(config)
        self._problem = None if problem is None else load_problem(Path(problem))
        self._of = lru_cache(maxsize=OWN_CLIENTS if problem else 1)(self._set_up)

    def answer(self, kind: str, letter: Letter, index: int, clients: int, kept: Letter | None) -> AnswerAndKept:
        """Answer a letter of some kind to client `index`, and return what the client keeps from now on.

        Raises:
            InputError: the letter can't be answered.
        """
        if clients != self._experiment.clients or not 0 <= index < clients:
            raise InputError(
                f"this run has {self._experiment.clients} clients; this node is partition {index} of {clients}: "
                "give matching partition-id and num-partitions"
            )
        federation, workers = self._of(index if self._problem else 0)
        client = federation.context.clients[index]
        if kind == "hello":
            architecture = wire.digest(federation.context, federation.model.state_dict())
            return wire.write_hello(index, client.samples, architecture), kept
        if kind == "train":
            return self._train(federation, workers, client, letter, kept)
        if kind == "statistics":
            weights = wire.read_state(wire.GLOBAL, letter, layout(federation.model.state_dict()))
            measured = workers.statistics(client, weights)
            return wire.write_state(wire.STATISTICS, measured, wire.statistics_layout(federation.model)), kept
        raise InputError(f"unknown kind of message {kind!r}")

    def _train(
        self, federation: Federation, workers: Clients, client: Client, letter: Letter, kept: Letter | None
    ) -> AnswerAndKept:
        context = federation.context
        before = _unpacked(kept)
        round, ratio, task = wire.read_task(context, letter, client.index, before)
        reply = workers.train(round, dataclasses.replace(client, ratio=ratio), task)
        after = {**before, **federation.method.keep(task, reply)}
        answer = wire.write_reply(context, round, client, task, reply, after)
        return answer, wire.write_state(wire.KEPT, after, {}) if after else kept

    def _set_up(self, index: int) -> tuple[Federation, Clients]:
        """Make the federation with one client's own data, or all clients'. The model is traced only once."""
        federation = self._everyone
        if self._problem is not None:
            federation = with_data_of(federation, self._problem, index)
        return federation, Clients(federation)

    @cached_property
    def _everyone(self) -> Federation:
        experiment = self._experiment
        if self._problem is None:
            federation = set_up(experiment)
        else:
            federation = set_up_own(experiment, self._problem, [0] * experiment.clients)
        use_threads(self._settings.threads or None, federation)
        return federation


def _unpacked(kept: Letter | None) -> State:
    return {} if kept is None else wire.read_own_state(wire.KEPT, kept)


@lru_cache(maxsize=1)
def workshop(config: str, problem: str | None) -> Workshop:
    """Return the process's workshop for a configuration in JSON; the last one is kept.

    Raises:
        InputError: the configuration can't be used.
    """
    return Workshop(json.loads(config), problem)


def answer(request: Mapping[str, Any], letter: Letter, kept: Letter | None) -> AnswerAndKept:
    """Answer what a ClientApp passes on. A failure is an answer too.

    Args:
        request: its kind, client, clients, config and problem.
        letter: the server's letter.
        kept: what the client keeps from earlier rounds.
    """
    try:
        here = workshop(request["config"], request["problem"])
        return here.answer(request["kind"], letter, request["client"], request["clients"], kept)
    except wire.Forgotten as error:
        return wire.write_failure(wire.FORGOTTEN, str(error)), kept
    except (InputError, MapError) as error:
        return wire.write_failure(wire.FAILED, " ".join(str(error).split())), kept
    except Exception as error:  # the server is told, whatever it is; the node's log says all
        traceback.print_exc()
        return wire.write_failure(wire.FAILED, f"{type(error).__name__}: {error}"), kept
