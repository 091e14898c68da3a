"""Reading, editing and folding of fx graphs. Nothing here knows of quantization."""
