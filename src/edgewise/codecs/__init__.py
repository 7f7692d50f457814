"""Stages that make updates smaller, one idea a file.

    which coordinates    select: segments, random_k, top_k, shared_top_k
    another basis        project: rotate, low_rank, sketch
    fewer bits           quantize: quantize (with eden, codebook, scales), mixed, wrap
    what is lost         feedback: ef14 and ef21 (with inner, residual) bring it back later
    which codec          ladder: each device chooses by its link
    bytes                wire: pack, golomb

``weigh`` counts devices by their data. The bounds ``clip`` and ``clamp`` are stages too, and stand in ``privacy.clip``.
To add one: docs/howto/own-codec.md.
"""
