"""What several of these tests need."""

import pytest

from hfp.layers import table as layers


@pytest.fixture
def table():
    """The table of layers may be changed, and is put back as it was."""
    kept = dict(layers._TABLE), dict(layers._READS_ALONG)
    yield
    for ours, theirs in zip((layers._TABLE, layers._READS_ALONG), kept, strict=True):
        ours.clear()
        ours.update(theirs)
