"""Tests of torchquilt-openvino."""
