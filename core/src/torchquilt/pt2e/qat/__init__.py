"""Quantization-aware training: a prepared model that trains, and the way back to one that convert reads.

The files, in the order of their imports: ``fake_quantize`` (rounding, with gradients), ``points`` (the
modules that do it), ``batch_norm`` and ``switched`` (operators that differ in training), ``wiring`` (the
graph, there and back), ``ranges`` (to begin with), ``agreement`` (of ranks), ``prepare``, ``back``,
``control`` (switches).
"""
