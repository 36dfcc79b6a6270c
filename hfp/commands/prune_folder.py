"""``hfp prune hf:FOLDER``: prune a language model's folder into another one, and say what was done."""

from __future__ import annotations

import argparse

from rich.console import Console

from hfp.commands.arguments.prune_folder import dropped, folder_budget, folder_of
from hfp.commands.printing import print_json
from hfp.language.prune import prune_folder


def run(arguments: argparse.Namespace) -> int:
    """Do all of it; returns 0."""
    report = prune_folder(
        folder_of(arguments),
        arguments.out,
        folder_budget(arguments),
        widths=arguments.widths or ("heads", "feed-forward"),
        drop_blocks=dropped(arguments),
        text=arguments.text,
        window=arguments.window,
        importance=arguments.importance,
        ranking=arguments.ranking,
        round_to=arguments.round_to,
        min_channels=arguments.min_channels,
        replace=arguments.force,
        progress=True,
    )
    if arguments.json:
        print_json(report.as_dict())
        return 0
    console = Console(highlight=False)
    console.print(report.shown())
    console.print(f"written to {report.out}", soft_wrap=True, markup=False)
    return 0
