"""Names that the command line must know without loading torch."""

WIDTHS = ("heads", "feed-forward", "hidden")
"""What may become narrower: whole key-value groups of heads, feed-forward channels, the hidden width."""
RANKINGS = ("uniform", "layer", "global")
"""In which order channels go."""
PREFIX = "hf:"
"""What the name of a model's folder begins with on the command line."""
