"""Make a smaller model of a larger one.

``distill`` has the losses of distillation. ``student`` makes the student, ``teaching`` trains it on a teacher, and
``ensemble`` makes one teacher of several.
"""
