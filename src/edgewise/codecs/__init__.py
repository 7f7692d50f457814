"""Stages that make updates smaller, one idea a file.

    which coordinates    segments, random_k, top_k, shared_top_k
    another basis        rotate, low_rank, sketch
    fewer bits           quantize (with eden, codebook, scales), mixed, wrap
    what is lost         feedback (with ef21, inner, residual) brings it back later
    which codec          ladder: each device chooses by its link
    bytes                pack, golomb

``weigh`` counts devices by their data. The bounds ``clip`` and ``clamp`` are stages too, and stand in ``privacy.clip``.
To add one: docs/howto/own-codec.md.
"""
