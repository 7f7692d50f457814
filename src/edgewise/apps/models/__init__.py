"""A run's model as files that others load: export and its model card.

``export`` is the door.
"""
