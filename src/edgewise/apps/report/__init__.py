"""Reports of runs: the summary, the HTML page and its charts, PNG plots, comparison pages, and formatted numbers.

``summary`` and ``page`` are the entry points. The server, the audit and the model cards import this package. It
imports none of them.
"""
