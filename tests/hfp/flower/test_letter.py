"""Letters as Flower's records: they arrive as they were sent, and lying ones are refused."""

import pytest

pytest.importorskip("flwr")

from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st

from hfp import InputError
from hfp.federation.letter import Letter
from hfp.flower.letter import from_records, to_records


@given(st.text(), st.binary())
def test_a_letter_arrives_as_it_was_sent(header, body):
    letter = Letter(header, body)
    assert from_records(to_records(letter)) == letter


def test_bodies_of_lying_headers_are_refused_before_anything_is_allocated():
    records = to_records(Letter("{}", b"1234"))
    array = records["body"]["body"]
    array.data = array.data.replace(b"(4,)", b"(9,)")
    with pytest.raises(InputError, match="must be a row of 4 bytes"):
        from_records(records)
    assert from_records(RecordDict({"header": records["header"]})) == Letter("{}")
