"""Values that every other package shares. No I/O; imports nothing else of lockgate."""
