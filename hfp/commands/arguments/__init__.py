"""What each command takes, in a file per command. Torch is not imported here, so that help and refusals are fast."""
