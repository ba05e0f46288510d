"""Checkpoints in, readable encoders out; torch only, knows nothing of ONNX."""
