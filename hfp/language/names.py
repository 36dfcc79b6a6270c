"""The name by which commands know a pruned language model's folder, before torch is loaded."""

RECORD = "hfp_prune.json"
