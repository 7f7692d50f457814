"""Thin, strict wrappers around primitives of maintained libraries. Nothing here is a primitive of our own.

``agree`` X25519, ``sign`` Ed25519, ``seal`` HPKE, ``prg`` AES-CTR, ``shamir`` secret sharing over a prime field.
"""
