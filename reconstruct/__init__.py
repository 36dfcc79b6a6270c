"""Index maps: what a pruning removed, so that the compact model can be put back into its parent, exactly."""
