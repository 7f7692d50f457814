"""Attack a recipe's own code path: empirical epsilon from trials, text leakage, and the page about both.

``audit`` is the door.
"""
