"""Quantization-aware training: a prepared model that trains, and the way back to one that convert reads.

The files, in the order of their imports: ``fake_quantize`` (rounding, with gradients), ``points`` (the
modules that do it) and the kinds of them (``followed_points``, ``learned_points``, ``computed_points``),
``batch_norm`` and ``switched`` (operators that differ in training), ``settled`` (biases), ``wiring`` (the
graph, there and back), ``ranges`` (to begin with), ``agreement`` (of ranks), ``back``, ``settling`` (what
convert changes for kernels), ``prepare``; for users ``control`` (switches), ``state_file`` and ``exported``.
"""
