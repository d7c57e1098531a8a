"""Bytes ⇄ pieces ⇄ digests: a content-addressed store of model files."""
