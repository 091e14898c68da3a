"""Accuracy: see where a quantized model loses it, and get it back."""
