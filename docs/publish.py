"""Builds the documentation as one version of a site that keeps older ones: `python docs/publish.py SITE [--name main]`.

Every version is a folder of `SITE`. `SITE/versions.js` lists them for the selector in the sidebar, and
`SITE/index.html` leads to the newest release. Nothing but files is needed: the site also opens from disk.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

DOCS = Path(__file__).parent
_RELEASE = re.compile(r"\d+(\.\d+)*")
_NAME = re.compile(r"[\w.-]+")


def main() -> None:
    """Build into the site, and list its versions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path, help="the folder of the site; it may have other versions already")
    parser.add_argument(
        "--name", default=release(), help="the version's folder [default: major.minor of the installed hfp]"
    )
    given = parser.parse_args()
    if not _NAME.fullmatch(given.name):
        parser.error(f"a version has a name of letters, digits, dots and hyphens; found {given.name!r}")
    build(given.site / given.name)
    write_list(given.site)


def release() -> str:
    """The major and minor number of the hfp that is installed: patches replace each other's pages."""
    return ".".join(metadata.version("hfp").split(".")[:2])


def build(folder: Path) -> None:
    """Build into a fresh folder, which takes the place of an earlier build of the version when it is whole."""
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "sphinx", "-W", "-q", str(DOCS), str(fresh)], check=True)
    shutil.rmtree(fresh / ".doctrees", ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def write_list(site: Path) -> None:
    """Write the list of versions with their pages, and the page that leads to the newest release."""
    names = versions(site)
    newest = newest_release(names)
    listed = [{"name": name, "newest": name == newest, "pages": pages(site / name)} for name in names]
    (site / "versions.js").write_text(f"window.hfpVersions = {json.dumps(listed)};\n", encoding="utf-8")
    lead = newest or names[0]
    (site / "index.html").write_text(
        '<!doctype html><meta charset="utf-8"><title>hfp</title>'
        f'<meta http-equiv="refresh" content="0; url={lead}/index.html">'
        f'<a href="{lead}/index.html">The documentation of hfp</a>\n',
        encoding="utf-8",
    )


def versions(site: Path) -> list[str]:
    """The versions in a site: releases from the newest to the oldest, then others by name."""
    names = [path.parent.name for path in site.glob("*/objects.inv") if not path.parent.name.endswith(".new")]
    releases = sorted(filter(_RELEASE.fullmatch, names), key=_numbers, reverse=True)
    return [*releases, *sorted(set(names) - set(releases))]


def newest_release(names: list[str]) -> str | None:
    """The newest release among names in the order of `versions`."""
    return next(filter(_RELEASE.fullmatch, names), None)


def pages(folder: Path) -> list[str]:
    """The pages of a version, without their ending, so that the selector can stay on a page that both versions have."""
    found = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.html"))
    return sorted(page for page in found if not page.startswith("_"))


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(map(int, name.split(".")))


if __name__ == "__main__":
    main()
