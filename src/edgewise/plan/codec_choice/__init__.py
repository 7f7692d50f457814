"""Which way an update is sent: the rungs that fit a recipe and a model, and one device's choice."""
