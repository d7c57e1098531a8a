"""Signed messages between lockgate and others: events go out, training jobs report in."""
