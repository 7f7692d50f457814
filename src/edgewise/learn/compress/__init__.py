"""Make a smaller model of a larger one: distillation (``distill``)."""
