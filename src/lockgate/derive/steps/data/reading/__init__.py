"""Raw files → chunks of rows, each mistake with its row and column."""
