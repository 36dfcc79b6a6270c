"""The command line ``hfp``. Each command parses its arguments, calls the library and prints.

Read `cli` first, which finds the command. Before it, `program` handles signals. `arguments` declares what each command
takes. Nothing imports this package.
"""
