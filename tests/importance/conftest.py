"""The networks that these tests share are importable from every test file here; so is what several of them need."""

import sys
from pathlib import Path

import pytest

from hfp.importance import layers

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def table():
    """The table of layers may be changed, and is put back as it was."""
    kept = dict(layers._TABLE), dict(layers._READS_ALONG)
    yield
    for ours, theirs in zip((layers._TABLE, layers._READS_ALONG), kept, strict=True):
        ours.clear()
        ours.update(theirs)
