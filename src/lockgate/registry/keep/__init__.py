"""Keeping versions for years: usage, verification, garbage, optimisation, bundles, backup."""
