"""Tasks of suites: questions put to a version that serves, and what its answers are worth."""
