"""Quantization-aware training: a prepared model that trains, and the way back to one that convert reads.

The files, in the order of their imports: ``fake_quantize`` (rounding, with gradients), ``kept_switches`` (in
the state), ``points`` (the modules that round) and the kinds of them (``followed_points``,
``learned_points``, ``computed_points``), ``batch_norm``, ``switched`` and ``stored_tensors`` (the other
modules), ``wiring`` (them into the graph) and ``unwiring`` (out of it), ``ranges`` (to begin with),
``agreement`` (of ranks), ``back`` (to a calibrated model), ``settling`` (what convert changes for kernels),
``prepare``; for users ``control``, ``state_file`` and ``exported``.
"""
