"""Encoders to graphs: tracing, verifying against PyTorch, and everything that follows."""
