"""Requests → replicas, by weight."""
