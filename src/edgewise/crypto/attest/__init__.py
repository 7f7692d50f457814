"""Attestation evidence: what a processor signs about the program in an enclave or a confidential machine.

``evidence`` its form and the facts in it, one module for each platform, ``accept`` what an owner accepts.
"""
