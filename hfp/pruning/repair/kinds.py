"""The kinds of repair, known before torch is loaded."""

REPAIRS = ("batch-norm", "bias", "least-squares")
"""What one pass over data can put right without training (`hfp.pruning.repair`)."""

AUTO = "auto"
"""The name of the default: `USUAL` where data are given, nothing where none are."""

USUAL = ("least-squares",)
"""What is repaired unless something else is asked for. Batch-norm statistics on top of it were of no use where it was
measured (`examples/benchmarks/repair.md`), and need larger batches."""
