"""What gates measure: answers of a version, metrics of them, and how sure those are."""
