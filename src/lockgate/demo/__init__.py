"""A small data center on one machine: real models, real load, one good release and one bad."""
