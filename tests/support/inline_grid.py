"""A grid whose nodes are in this process; every message passes through Flower's own serialisation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity


class InlineGrid(Grid):
    """Runs a ClientApp when its reply is asked for; `sizes` has the bytes of every message and its reply, by type."""

    def __init__(self, app: ClientApp, clients: int, config: dict, order: Callable[[list[str]], list[str]] = list):
        self._app, self._config, self._order = app, {"worker": False, **config}, order
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self._contexts = {}
        for client in range(clients):
            self.join(1000 + client, client, clients)
        self._pending: dict[str, tuple[str, dict[str, bytes]]] = {}
        self._ids = itertools.count()
        self.sizes: list[tuple[str, int, int, int]] = []
        self.silent: set[int] = set()
        self.silent_in: set[str] = {"train", "query", "evaluate"}
        self.broken: dict[int, Callable[[Message], Message]] = {}

    def join(self, node: int, client: int, clients: int) -> None:
        place = {"partition-id": client, "num-partitions": clients}
        self._contexts[node] = Context(1, node, place, RecordDict(), self._config)

    def leave(self, node: int) -> None:
        del self._contexts[node]

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = []
        for message in messages:
            identity = f"message-{next(self._ids)}"
            message.metadata.__dict__["_message_id"] = identity
            self._pending[identity] = deflated(message)
            pushed.append(identity)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = []
        for identity in self._order([one for one in message_ids if one in self._pending]):
            contents = self._pending[identity]
            message = inflated(contents)
            message.metadata.__dict__["_message_id"] = identity
            node = message.metadata.dst_node_id
            silent = node in self.silent and message.metadata.message_type in self.silent_in
            if silent or node not in self._contexts:
                continue
            del self._pending[identity]
            reply = inflated(answer := deflated(self._run(node, message)))
            self.sizes.append((message.metadata.message_type, node, size(contents), size(answer)))
            replies.append(reply)
        return replies

    def _run(self, node: int, message: Message) -> Message:
        try:
            if node in self.broken and message.metadata.message_type == "train":
                return self.broken[node](message)
            return self._app(message, self._contexts[node])
        except Exception as error:
            return Message(Error(2, str(error)), reply_to=message)

    def set_run(self, run):
        raise NotImplementedError

    run = property(set_run)

    def create_message(self, *_args, **_named):
        raise NotImplementedError

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError


def deflated(message: Message) -> tuple[str, dict[str, bytes]]:
    return message.object_id, {identity: part.deflate() for identity, part in get_all_nested_objects(message).items()}


def inflated(contents: tuple[str, dict[str, bytes]]) -> Message:
    return inflate_object_from_contents(contents[0], dict(contents[1]))


def size(contents: tuple[str, dict[str, bytes]]) -> int:
    return sum(len(part) for part in contents[1].values())
