"""How commands print a JSON document."""

from __future__ import annotations

import json
import sys
from typing import Any

from hfp.federation.records import finite


def print_json(document: Any) -> None:
    """Print a document of plain values in a line of its own, with null for what JSON has no number for."""
    json.dump(finite(document), sys.stdout, allow_nan=False)
    sys.stdout.write("\n")
