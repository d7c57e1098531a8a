"""Pure statistics: windows of samples in, verdicts out. NumPy only; no I/O, no clock."""
