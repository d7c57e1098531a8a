"""New versions from old: steps, their recipes, pipelines of them."""
