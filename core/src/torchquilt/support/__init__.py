"""Support: what a backend can quantize, as data that both the query and the annotation read.

``operators`` lists the operators under all their names, ``object_type`` finds the one that a user means,
``data_movement`` those that compute nothing. ``pattern`` matches small trees of operators, made of ``parts``,
``allowed_spec`` and ``constraints`` say under which conditions, ``rewrites`` in which form a backend wants
them, with ``call_facts`` for both. ``table`` puts these together as the rows of a backend. ``capability_row``
and ``capabilities`` are the same rows as plain data. Importing this package does not import torch.
"""
