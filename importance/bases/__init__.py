"""What several criteria have in common."""
