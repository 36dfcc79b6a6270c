"""Make HTML pages from templates that extend `page.html.jinja`. They open from disk, have no scripts, fetch nothing."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader


def page_from(template: str, **values: Any) -> str:
    """Make a page.

    Args:
        template: a template's path in the package. It extends `page.html.jinja`, and declares the colours of text and
            lines: `--ink`, `--soft`, `--rule`, and `--c0` and so on.
        **values: what the template shows. `colours` is how many of the colours `--c0` and so on there are.

    Returns:
        The page. Text of the values is escaped.
    """
    environment = Environment(loader=PackageLoader("hfp", ""), autoescape=True, trim_blocks=True)
    return environment.get_template(template).render(**values)
