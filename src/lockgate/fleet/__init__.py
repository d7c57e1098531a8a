"""Replicas of a version on targets: placement, supervision, runtimes."""
