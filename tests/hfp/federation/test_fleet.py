"""Clients in this process: what they are counted as sending, and what they leave behind."""

import pytest
import torch

from hfp import Experiment
from hfp.costs.payload import pack
from hfp.federation.fleet import InProcess
from hfp.federation.rounds import Course
from hfp.federation.setup import set_up
from hfp.methods import methods

SMALL = {"train_images": 60, "clients": 3, "rounds": 3, "head_start": 1.0, "rank": 2, "batch_size": 8, "evaluate": 9}
OPTIONS = {"prunefl": {"every": 2, "passes": 2, "limit": 2}}


class Weighed(InProcess):
    """Also packs what passes, and keeps the replies with copies of what they held when they came."""

    def __init__(self, federation):
        super().__init__(federation)
        self.replies = []

    def train(self, round, clients, write):
        for result in super().train(round, clients, write):
            assert result.bytes_down == len(pack(result.task.tensors))
            assert result.bytes_up == len(pack(result.reply.tensors))
            copies = {name: tensor.clone() for name, tensor in result.reply.tensors.items()}
            self.replies.append((result.reply.tensors, copies))
            yield result


@pytest.mark.parametrize("method", [method.name for method in methods()])
def test_bytes_are_those_of_the_packed_messages_and_a_reply_stays_what_it_was(method):
    federation = set_up(Experiment(method=method, options=OPTIONS.get(method, {}), **SMALL))
    fleet = Weighed(federation)
    course = Course(federation, fleet)
    for _ in range(3):
        course.advance()
    assert len(fleet.replies) >= 7  # PruneFL begins with one client
    for tensors, copies in fleet.replies:
        for name, tensor in tensors.items():
            assert tensor.is_contiguous()
            assert torch.equal(tensor, copies[name]), name
