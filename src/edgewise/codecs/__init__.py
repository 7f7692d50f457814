"""Stages that make updates smaller, one idea a file.

    which coordinates    select: segments, random_k, top_k, shared_top_k
    another basis        project: rotate, low_rank, sketch
    fewer bits           quantize: quantize (with eden, codebook, scales), mixed, wrap
    error feedback       feedback: ef14 and ef21 (with inner, residual)
    which codec          ladder: each device chooses by its link
    bytes                wire: pack, golomb

``weigh`` weights devices by their amount of data. The bounds ``clip`` and ``clamp`` are stages too, in
``privacy.clip``. To add a codec: docs/howto/own-codec.md.
"""
