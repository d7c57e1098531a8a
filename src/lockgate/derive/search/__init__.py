"""Searching for parameters: every trial is a step like any other, with its recipe and lineage."""
