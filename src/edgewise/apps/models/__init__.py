"""A run's model as files that other programs load: export, model card, verification.

``export`` is the door.
"""
