"""The subcommands of ``hfp``: each parses its arguments, calls the library and prints."""
