"""The kinds of repair, known before torch is loaded."""

REPAIRS = ("batch-norm", "bias", "least-squares")
"""What one pass over data can put right without training (`hfp.pruning.repair`)."""

AUTO = "auto"
"""The name of the default: `USUAL` where data are given, nothing where none are."""

USUAL = ("least-squares", "batch-norm")
"""The repairs that are done unless others are asked for."""
