"""What we know and do about fx graphs, with no idea of quantization: reading, editing, folding."""
