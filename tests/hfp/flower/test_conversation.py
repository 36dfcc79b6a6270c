"""Messages to several clients: how many are under way at once, and in which order the answers come."""

from __future__ import annotations

import json
import tempfile
from types import SimpleNamespace

import pytest

pytest.importorskip("flwr")

from hypothesis import given
from hypothesis import strategies as st

from hfp.federation.letter import Letter
from hfp.flower.conversation import Conversation
from hfp.flower.letter import to_records
from hfp.methods import Client


class Reply:
    """What a conversation reads of one of Flower's messages."""

    def __init__(self, identity, content):
        self.metadata, self.content = SimpleNamespace(reply_to_message_id=identity), content

    def has_error(self):
        return False


class Mailbox:
    """Answers to messages, one at each look, in an order that the test draws."""

    def __init__(self, draw):
        self.draw, self.under_way, self.most = draw, [], 0

    def send(self, client, left):
        assert left > 0
        self.under_way.append(str(client.index))
        self.most = max(self.most, len(self.under_way))
        return str(client.index)

    def replies(self, identities):
        assert sorted(identities) == sorted(self.under_way)
        if not self.under_way:
            return []
        identity = self.under_way.pop(self.draw(len(self.under_way)))
        return [Reply(identity, to_records(Letter(json.dumps({"kind": "reply"}), identity.encode())))]


def conversation(clients, box, window=100, seconds=60.0, on_unanswered=None):
    def nothing(messages):
        raise AssertionError(f"{messages} have an answer")

    limits = {"window": window, "seconds": seconds}
    return Conversation(clients, box.send, box, **limits, on_unanswered=on_unanswered or nothing)


@given(st.data(), st.integers(1, 6), st.integers(1, 4))
def test_answers_come_in_the_clients_order_and_no_more_than_the_window_are_under_way(data, count, window):
    box = Mailbox(lambda waiting: data.draw(st.integers(0, waiting - 1)))
    clients = [Client(index=index, samples=1, ratio=0.0) for index in data.draw(st.permutations(range(count)))]
    answers = list(conversation(clients, box, window).answers())
    assert [client for client, _ in answers] == clients
    assert [heard.letter.body for _, heard in answers] == [str(client.index).encode() for client in clients]
    assert box.most == min(window, count)


def test_when_the_time_is_over_everybody_who_is_left_is_dropped_at_once():
    class Silent(Mailbox):
        def replies(self, identities):
            return []

    told, box = [], Silent(None)
    clients = [Client(index=index, samples=1, ratio=0.0) for index in range(3)]
    talk = conversation(clients, box, window=2, seconds=0.05, on_unanswered=told.append)
    answers = list(talk.answers())
    assert [heard.status for _, heard in answers] == ["dropped"] * 3
    assert [heard.problem.split(";")[0] for _, heard in answers] == [
        *["no answer when the round ended"] * 2,
        "the round ended before its message could be sent",
    ]
    assert told == [{"0": 0, "1": 1}]
    assert box.under_way == ["0", "1"]


def test_a_client_whose_message_can_not_be_sent_is_dropped_and_the_others_are_asked():
    class Torn(Mailbox):
        def send(self, client, left):
            return None if client.index == 0 else super().send(client, left)

    box = Torn(lambda waiting: 0)
    clients = [Client(index=index, samples=1, ratio=0.0) for index in range(2)]
    (_, first), (_, second) = conversation(clients, box, window=1).answers()
    assert (first.status, first.problem) == ("dropped", "no message could be sent to its node")
    assert second.letter.body == b"1"


def test_replies_that_wait_leave_no_file_behind_a_killed_server(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    box = Mailbox(lambda waiting: waiting - 1)  # the last one first, so that its reply waits
    clients = [Client(index=index, samples=1, ratio=0.0) for index in range(3)]
    talk = conversation(clients, box).answers()
    next(talk)
    assert list(tmp_path.iterdir()) == []
    assert [heard.letter.body for _, heard in talk] == [b"1", b"2"]
