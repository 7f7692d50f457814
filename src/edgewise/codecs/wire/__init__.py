"""Payloads as bytes: layouts that a space fixes, and codes for positions."""
