"""The command line: one module for a family of commands. Nothing imports this wing.

``main`` is the entry point. Everything heavy is imported inside the commands, because help must come at once.
"""
