"""Calibration: run data through a prepared model, and keep what its observers saw.

``calibrate`` runs the batches, ``distributed`` shares them among processes, ``checkpoint`` writes the
statistics to a file and ``merging`` puts those of several runs together. ``report`` says what was seen, with
the help of ``convergence`` and ``outliers``; ``unreached`` finds operators that no batch came to.
``single_rows`` repeats batches of one row, ``interrupts`` ends a run in a whole state.
"""
