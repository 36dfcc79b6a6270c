"""Moving the server's state: every tensor goes, indices of maps and everything else stay."""

import dataclasses

import torch

from hfp.federation.home import moved
from hfp.methods import ServerState
from hfp.reconstruct import IndexMap, TensorMap

META = torch.device("meta")


@dataclasses.dataclass(frozen=True)
class Remembered:
    scores: dict
    rounds: int = 3
    pairs: tuple = ()


def test_tensors_move_however_deep_they_lie():
    index_map = IndexMap({"w": TensorMap((4,), (torch.tensor([1, 2]),))})
    state = ServerState(
        2, {"w": torch.ones(4)}, Remembered({"a": torch.ones(2), "b": 5}, pairs=(index_map, [torch.ones(1)]))
    )
    there = moved(state, META)
    memory = there.method_state
    assert there.weights["w"].device == memory.scores["a"].device == memory.pairs[1][0].device == META
    assert (there.round, memory.rounds, memory.scores["b"]) == (2, 3, 5)
    assert memory.pairs[0] is index_map
    assert state.weights["w"].device.type == "cpu"


def test_what_is_there_already_is_handed_back_as_it_is():
    state = ServerState(2, {"w": torch.ones(4)}, Remembered({"a": torch.ones(2)}))
    assert moved(state, torch.device("cpu")) is state
