"""Processes of this machine that outlive whoever started them."""
