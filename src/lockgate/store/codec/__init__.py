"""Codecs: how an object's bytes become a frame, and a frame the bytes again."""
