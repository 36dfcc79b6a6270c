"""Files of pruned models.

`pruned_file` reads and writes them, `document` is their JSON part, `skeletons` names models that timm can make.
"""
