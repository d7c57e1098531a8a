"""Reasons that a version may not pass: gates, and what they measure."""
