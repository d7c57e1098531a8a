"""One small pure file for each strategy: what a spec says → the steps of a plan."""
