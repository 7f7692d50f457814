"""What the server does with the mean update of a round: two pure functions over the flat vector (``base.Strategy``).

To add one: docs/extend.md.
"""
