"""Support: what a backend can quantize, as data that both the query and the annotation read.

``operators`` lists the operators under all their names, ``object_type`` finds the one that a user means,
``data_movement`` those that compute nothing. ``pattern`` matches chains of operators in a graph,
``allowed_spec`` and ``constraints`` say under which conditions, ``table`` puts these together as the rows of
a backend. ``capability_row`` and ``capabilities`` are the same rows as plain data. Importing this package
does not import torch.
"""
