"""Contribution of the backend to its own target: the target knows all that it needs.

Importing this module imports neither torch nor a compiler.
"""

from torchquilt.backend import Contribution

CONTRIBUTION = Contribution()
