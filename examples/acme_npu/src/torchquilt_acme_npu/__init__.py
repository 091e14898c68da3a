"""The Acme NPU backend of torchquilt. Empty, since listing backends imports it and must not import torch."""
