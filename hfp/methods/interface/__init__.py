"""The interface of a federated method.

`base` has what a method implements, `values` what it takes and gives, `client_context` what a client has at hand,
`counts` how many channels a ratio leaves, and `registry` finds methods by name.
"""
