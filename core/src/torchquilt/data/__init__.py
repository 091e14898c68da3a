"""Calibration data in files: what is in them, what a model takes, and the one as batches for the other.

The files, in the order of their imports: ``arrays`` (what stands in a ``.npz`` or ``.safetensors`` file),
``inputs`` (what an exported program takes), ``batches`` (which array is which input, checked and read).
"""

from torchquilt.data.batches import FileBatches, first_arrays, open_batches
from torchquilt.data.inputs import ModelInput, ModelInputs

__all__ = ["FileBatches", "ModelInput", "ModelInputs", "first_arrays", "open_batches"]
