"""Recovery passes: get accuracy back that quantizing costs, with any backend. None is run by default.

Those over the float model take what :func:`torch.export.export` made and return what
:func:`torchquilt.prepare_pt2e` takes. Those over a calibrated model take what :func:`torchquilt.calibrate`
returned, and return what :func:`torchquilt.convert_pt2e` takes. :func:`steps_of` says what each one did.
"""

from torchquilt.accuracy.recovery.steps import Gain, RecoveryStep, steps_of

__all__ = [
    "Gain",
    "RecoveryStep",
    "steps_of",
]
