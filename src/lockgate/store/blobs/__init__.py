"""Named byte strings, whole or absent: in memory, in a folder, in an object store."""
