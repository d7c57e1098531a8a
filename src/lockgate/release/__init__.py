"""The machine: spec, plan, state, decide, converge, act, loop."""
