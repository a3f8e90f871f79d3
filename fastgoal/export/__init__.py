"""Model conversion, merging of adapters, and ONNX export."""
