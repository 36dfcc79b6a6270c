"""What a criterion reads from a coupled group: its members, their roles and where each channel lies."""
