"""All facts in order: append-only events, leases, audit."""
