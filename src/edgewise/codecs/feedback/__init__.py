"""Error feedback: a later round sends what a codec left out.

``ef14`` keeps a residual on the device, ``ef21`` keeps mirrors on device and server. ``inner`` runs the codecs inside,
and ``residual`` stores the error.
"""
