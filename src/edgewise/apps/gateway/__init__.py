"""A gateway: a process near the devices, of another operator than the orchestrator's.

``start`` joins it to an orchestrator and serves, ``commands`` are those of its operator.
"""
