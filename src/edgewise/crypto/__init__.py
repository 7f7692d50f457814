"""Thin, strict doors to primitives of kept libraries: nothing here is a primitive of our own.

``agree`` X25519, ``sign`` Ed25519, ``seal`` HPKE, ``prg`` AES-CTR, ``shamir`` secret sharing over a prime field.
"""
