"""What the server does with the mean update of a round: two pure functions over the flat vector (``base.Strategy``),
and what devices do beside the training for it (``client.Client``).

To add one: docs/howto/own-algorithm.md.
"""
