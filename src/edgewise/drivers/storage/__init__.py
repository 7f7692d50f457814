"""What outlives a process: run directories, journals, blobs, device states, privacy ledgers.

``run_store.RunStore`` is the door to a run directory, ``device_store`` to a device's state.
"""
