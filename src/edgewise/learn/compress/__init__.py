"""Make a smaller model of a larger one.

``distill`` has the losses of distillation. ``student`` makes the student, and ``teaching`` trains it on a teacher.
"""
