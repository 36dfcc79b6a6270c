"""``hfp perplexity``: how well a language model in a folder predicts a text."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from hfp.commands.printing import print_json
from hfp.language.choices import PREFIX
from hfp.language.reading import perplexity_of_folder
from hfp.paths import of_home


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; returns 0."""
    folder = of_home(arguments.folder.removeprefix(PREFIX))
    found = perplexity_of_folder(
        folder, arguments.text, window=arguments.window, device=arguments.device, progress=True
    )
    if arguments.json:
        print_json({"folder": str(folder), "text": str(arguments.text), **asdict(found)})
    else:
        print(f"perplexity {found.value:.4g} on {found.tokens:,} tokens in {found.windows:,} windows")
    return 0
