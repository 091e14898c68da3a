"""Contribution of the backend to the target of this plugin: nothing, since the target knows it.

Importing this module does not import torch.
"""

from torchquilt.backend import Contribution

CONTRIBUTION = Contribution()
