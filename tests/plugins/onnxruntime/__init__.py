"""Tests of the ONNX Runtime plugin."""
