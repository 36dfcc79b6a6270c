"""Read from a coupled group what a criterion needs.

`members` lists the layers and where each of their channels lies in the root. `roles` says which of them read channels,
write them or take statistics over them.
"""
