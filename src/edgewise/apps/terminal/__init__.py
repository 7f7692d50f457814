"""The terminal: command sessions with exit statuses and crash files, shared options, and live progress.

Commands and the runs that they start use this package. It knows no model and no server.
"""
