"""The arithmetic of merging: formulas on float32 parts of tensors, and adapters."""
