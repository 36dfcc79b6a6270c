"""The names that a pruning is told by, known before torch is loaded."""

RANKINGS = ("layer", "global", "isomorphic", "measured")
"""In which order channels go (`hfp.pruning.schedule.RankingRules`)."""
