"""The command line: one module for each family of commands. No other package imports this one.

``main`` is the entry point. The commands import everything heavy inside their bodies, so that help is fast.
"""
