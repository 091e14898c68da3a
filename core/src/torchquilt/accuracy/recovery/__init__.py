"""Recovery passes: each changes a float or a calibrated model so that quantizing it costs less.

None of them is run by default, and none knows a backend.
"""
