"""The owner's side of a device: policy, conditions, the record of what was sent, orders to pause, resume and leave.

``agent`` is the process that trains. Only ``agent`` and ``joining`` import torch.
"""
