"""Facts about layers and models that all three packages share."""
