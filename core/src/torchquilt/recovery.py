"""Recovery passes: get accuracy back that quantizing costs, with any backend. None is run by default.

Those over the float model take what :func:`torch.export.export` made and return what
:func:`torchquilt.prepare_pt2e` takes. Those over a calibrated model take what :func:`torchquilt.calibrate`
returned, and return what :func:`torchquilt.convert_pt2e` takes. :func:`steps_of` says what each one did.
"""

from torchquilt.accuracy.recovery.bias_correction import correct_biases
from torchquilt.accuracy.recovery.equalization import equalize
from torchquilt.accuracy.recovery.range_choice import choose_ranges
from torchquilt.accuracy.recovery.range_splitting import split_ranges
from torchquilt.accuracy.recovery.rounding import round_weights
from torchquilt.accuracy.recovery.smoothing import smooth
from torchquilt.accuracy.recovery.steps import Gain, RecoveryStep, steps_of

__all__ = [
    "Gain",
    "RecoveryStep",
    "choose_ranges",
    "correct_biases",
    "equalize",
    "round_weights",
    "smooth",
    "split_ranges",
    "steps_of",
]
