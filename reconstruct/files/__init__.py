"""Store pruned models in files.

`pruned_file` reads and writes them, `document` is their JSON part, and `skeletons` names models that timm can make.
"""
