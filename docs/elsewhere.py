"""A Sphinx extension that brings pages from other folders of the repository into the site, before each build.

The measured pages stand beside their scripts and data, where GitHub shows them; the site has copies whose links work
there. Copies go to folders called `generated`, which git ignores.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
REPOSITORY = DOCS.parent
COPIES = {
    **{
        f"examples/benchmarks/{name}.md": f"results/generated/{name}.md"
        for name in (
            "compare", "federated", "baselines", "robust", "criteria", "criteria_cifar10", "repair", "timm_sweep",
            "zoo", "zoo_criteria", "reconstruct", "planning", "speed", "language", "flower", "gpu_round",
            "paper_costs", "promises",
        )
    },
    **{
        f"examples/paper/{name}.md": f"results/generated/paper_{name.replace('-', '_')}.md"
        for name in (
            "found", "fixed", "first-rounds", "ratios", "tables", "cifar10", "fmnist", "cifar10-resnet20",
            "cifar10-vgg16",
        )
    },
    "examples/extending.md": "how-to/generated/extending.md",
    "CHANGELOG.md": "reference/generated/changelog.md",
}  # fmt: skip
"""Where each page is in the repository, and where in the site."""

_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
_IMAGE = re.compile(r"(!\[[^\]]*\]\([^)]*\))")
_COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)


def setup(app: Any) -> dict[str, Any]:
    """Copy the pages when a build begins."""
    app.connect("builder-inited", lambda app: copy_pages())
    return {"version": "1", "parallel_read_safe": True}


def copy_pages() -> None:
    """Write all copies; one that would not change is left as it is, so that Sphinx does not read it again."""
    for source, place in COPIES.items():
        if not (REPOSITORY / source).is_file():
            continue
        page, path = copied(source, place), DOCS / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != page:
            path.write_text(page, encoding="utf-8")


def copied(source: str, place: str) -> str:
    """The text of a page with links that work in its new place, and without the comments that make its tables."""
    text = _COMMENT.sub("", (REPOSITORY / source).read_text(encoding="utf-8"))
    return _IMAGE.sub(r"\1{.chart}", _LINK.sub(lambda found: _moved(found[1], source, place), text))


def _moved(target: str, source: str, place: str) -> str:
    file = (REPOSITORY / source).parent / target
    known = os.path.relpath(file, REPOSITORY).replace(os.sep, "/")
    there = DOCS / COPIES[known] if known in COPIES else file
    return os.path.relpath(there, (DOCS / place).parent).replace(os.sep, "/")
