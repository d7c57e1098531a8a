"""Signals and windows: what the gateway saw, kept for the judge."""
