"""Stages that make updates smaller: ``select``, ``project``, ``quantize``, ``feedback``, ``ladder`` and ``wire``.

``weigh`` weights devices by their amount of data. The bounds ``clip`` and ``clamp`` are stages too, in
``privacy.clip``. To add a codec: docs/howto/own-codec.md.
"""
