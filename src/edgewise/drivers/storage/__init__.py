"""Durable state: run directories, journals, blobs, device states, and privacy ledgers.

Start at ``run_store.RunStore`` for a run directory and at ``device_store`` for a device's state.
"""
