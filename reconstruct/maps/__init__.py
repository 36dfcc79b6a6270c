"""Which entries of a full model a compact model holds, and sums over many such parts."""
