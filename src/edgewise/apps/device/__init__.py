"""The owner's side of a device: the policy, the conditions under which it works, the record of what left it, and the
orders to pause, resume and leave. ``agent`` trains.

Nothing here but ``agent`` and ``joining`` imports torch.
"""
