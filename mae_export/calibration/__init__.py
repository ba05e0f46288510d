"""Calibration: what activations look like on real images, and 8-bit graphs made from that. No torch."""
