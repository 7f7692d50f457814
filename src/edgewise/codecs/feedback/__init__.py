"""Error feedback: what a codec left out comes back in a later round."""
