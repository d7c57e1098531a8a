"""The server process of the `onnx` and `transformers` runtimes: `python -m …runtimes.serve`."""
