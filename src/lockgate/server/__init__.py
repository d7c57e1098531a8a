"""HTTP API and wiring: where the ports meet their adapters and the loop lives."""
