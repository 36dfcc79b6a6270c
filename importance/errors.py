"""The error that a criterion raises when it cannot give a score that means what its name says."""

from __future__ import annotations


class CriterionError(ValueError):
    """A criterion can't be built, accumulated or scored; the message says where, why and what to do.

    >>> from hfp.importance import CriterionError, create
    >>> try:
    ...     create("group-fischer")
    ... except CriterionError as error:
    ...     print(error)
    unknown criterion 'group-fischer'; did you mean group-fisher or group-loss or sampled-fisher?
    """
