"""``hfp perplexity``: how well a language model in a folder predicts a text."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from hfp.language.choices import PREFIX
from hfp.language.reading import perplexity_of_folder


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; returns 0."""
    folder = Path(arguments.folder.removeprefix(PREFIX)).expanduser()
    found = perplexity_of_folder(
        folder, arguments.text, window=arguments.window, device=arguments.device, progress=True
    )
    if arguments.json:
        json.dump({"folder": str(folder), "text": str(arguments.text), **asdict(found)}, sys.stdout)
        sys.stdout.write("\n")
    else:
        print(f"perplexity {found.value:.4g} on {found.tokens:,} tokens in {found.windows:,} windows")
    return 0
