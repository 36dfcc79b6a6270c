"""The error of this package."""


class MapError(ValueError):
    """An index map can't be made, applied, combined or read; the message says what was found, where, and what to do."""
