"""Which weights to remove: masks of single weights, and whole neurons."""
