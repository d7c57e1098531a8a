"""Copies of what lies outside: rows of a server, objects of a store, a window of a stream."""
