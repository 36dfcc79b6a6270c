"""What a run leaves behind: its folder, checkpoint, tables and pictures."""
