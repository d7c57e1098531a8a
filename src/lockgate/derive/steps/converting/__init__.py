"""Other forms of the same model: GGUF for llama.cpp, ONNX for onnxruntime-genai."""
