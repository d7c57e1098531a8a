"""The weights of a model folder, read and written as a stream: never a whole model in memory."""
