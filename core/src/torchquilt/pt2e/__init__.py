"""The flow: annotate → prepare → calibrate → convert.

``annotate`` normalizes a copy of the model and asks the quantizers, ``sharing_groups`` finds tensors with
common parameters, ``ledger_recording`` writes down what was decided. ``prepare`` puts in the
``observer_points``, after ``callback`` let the quantizers see them. ``calibration`` runs data. ``convert``
writes quantize and dequantize (``qdq_insertion``) with scales that kernels can compute with
(``scale_limits``), and integer constants (``integer_constants``, checked by ``finite_constants``);
``symmetric_clipping`` warns of values that a range cuts off, ``quantization_tags`` keeps the tags that
backends read. ``reference`` writes integer arithmetic instead. ``model_record`` is what a model carries from
step to step, ``invariants`` holds between two passes.
"""
