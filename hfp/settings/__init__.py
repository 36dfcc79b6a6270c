"""Declare each setting once; the checks, flags, help, readers and tables follow from the declaration.

`setting` declares a field of a frozen dataclass. `check_settings` checks an instance. `settings_of` lists what is
declared, and `tables` renders it. Nothing here imports torch, so that a command answers before torch is loaded.
"""

from hfp.settings.declare import check_settings, field_of, setting, settings_of
from hfp.settings.setting import EITHER, ONE, PAIRS, SEVERAL, Setting, pair, shown
from hfp.settings.tables import described, markdown

__all__ = [
    "EITHER",
    "ONE",
    "PAIRS",
    "SEVERAL",
    "Setting",
    "check_settings",
    "field_of",
    "described",
    "markdown",
    "pair",
    "setting",
    "settings_of",
    "shown",
]
