"""What serves a version: the light ONNX runtime, transformers, vLLM, or any command."""
