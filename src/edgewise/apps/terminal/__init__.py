"""The terminal: sessions with exit statuses and crash files, shared options, and progress on the screen.

The commands and the runs that they start use it. It knows no model and no server.
"""
