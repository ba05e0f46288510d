"""The deployed half: images in, named features out, with numpy, Pillow and one runtime; no torch, no onnx."""
