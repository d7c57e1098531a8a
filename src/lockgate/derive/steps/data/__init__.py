"""Steps that make datasets: rows from raw files, cleaned rows, and their split."""
