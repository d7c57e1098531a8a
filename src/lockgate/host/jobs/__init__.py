"""Work that ends: one program at a time, within limits, and nothing of it left behind."""
