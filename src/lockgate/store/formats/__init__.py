"""Which bytes of a model file are tensors, and where to cut the bytes that are not."""
