"""Pre-training on a small scale: masking, decoder, loss, optimiser; its only product is a checkpoint."""
