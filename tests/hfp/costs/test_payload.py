import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfp.costs.payload import layout, pack, packed_bytes, unpack
from hfp.errors import InputError

SHAPES = st.lists(st.lists(st.integers(0, 4), max_size=4).map(tuple), min_size=1, max_size=6)


@settings(deadline=None)
@given(shapes=SHAPES, dtypes=st.lists(st.sampled_from([torch.float32, torch.float64, torch.int64]), min_size=6))
def test_unpack_gives_back_what_was_packed(shapes, dtypes):
    state = {
        f"t{i}": torch.randint(-99, 99, shape).to(dtype)
        for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=False))
    }
    again = unpack(pack(state), layout(state))
    assert list(again) == list(state)
    for name, tensor in state.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor)


def test_payload_is_its_values_and_a_short_header():
    state = {f"layer{i}.weight": torch.randn(30, 30) for i in range(100)}
    assert len(pack(state)) <= 1.01 * 4 * 100 * 900


def test_a_dtype_that_safetensors_does_not_write_is_named_by_both():
    for count in (pack, packed_bytes):
        with pytest.raises(InputError, match="safetensors does not write tensors of torch.complex128"):
            count({"w": torch.ones(4, dtype=torch.complex128)})


def test_damaged_and_mismatched_payloads_are_refused():
    state = {"w": torch.ones(4), "n": torch.tensor(3)}
    message = pack(state)
    with pytest.raises(InputError, match="can't be read"):
        unpack(message[:-1], layout(state))
    with pytest.raises(InputError, match="a payload must hold .*'float32': 5.* values; found .*'float32': 4"):
        unpack(message, layout({**state, "w": torch.ones(5)}))
    with pytest.raises(InputError, match="must hold"):
        unpack(message, layout({"w": state["w"]}))


@settings(deadline=None)
@given(
    shapes=SHAPES,
    dtypes=st.lists(
        st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8, torch.bfloat16, torch.bool]),
        min_size=6,
    ),
)
def test_packed_bytes_are_the_length_of_the_message(shapes, dtypes):
    state = {f"t{i}": torch.ones(shape).to(dtype) for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=False))}
    assert packed_bytes(state) == len(pack(state))
    assert packed_bytes({name: tensor.to("meta") for name, tensor in state.items()}) == len(pack(state))
