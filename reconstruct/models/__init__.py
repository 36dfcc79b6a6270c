"""Build compact models.

`compact` builds their modules, `twin` finds what their tensors keep, `attributes` sets their plain attributes, and
`running` sees whether they run.
"""
