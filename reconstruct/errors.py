"""The error of hfp.reconstruct."""


class MapError(ValueError):
    """An index map can't be made, applied, combined or read.

    The message says what was expected, what was found, where, and what to do.

    >>> import torch
    >>> from hfp.reconstruct import IndexMap, MapError
    >>> try:
    ...     IndexMap.identity({"weight": torch.zeros(2)}).restrict({"bias": torch.zeros(2)})
    ... except MapError as error:
    ...     print(error)
    this is not the full state of this map: missing weight; unexpected bias
    """
