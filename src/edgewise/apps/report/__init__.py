"""Everything that shows a run: the typed summary, the page, its charts, comparisons of several runs, numbers in words.

``summary`` and ``page`` are the doors. The server, the audit and the model cards use this wing, and it uses none of
them.
"""
