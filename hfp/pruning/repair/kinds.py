"""The kinds of repair, known before torch is loaded."""

REPAIRS = ("batch-norm", "bias", "least-squares")
"""What one pass over data can put right without training (`hfp.pruning.repair`)."""
