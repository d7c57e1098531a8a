"""Scorers: how good an answer is, off the request path, on copies of a share of the requests."""
