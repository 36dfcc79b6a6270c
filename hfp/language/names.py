"""How commands know a language model's folder, before torch is loaded."""

import json
from pathlib import Path

RECORD = "hfp_prune.json"


def holds_language_model(folder: Path) -> bool:
    """Whether a folder has the config.json of transformers; that of a run has other fields."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "architectures" in found
