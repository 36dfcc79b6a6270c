"""What each command takes, a file per command. Torch is not imported here, so help and refusals come at once."""
