"""Quantizers: who decides which operators are quantized, and how.

``base`` has the protocol, ``matching`` looks at a graph and makes a ``claim`` for each match of a row of the
table under the user's rules, ``profitability`` leaves those that cost more than they save, and
``float_outputs`` leaves outputs whose integers nothing reads. ``deciding`` lets several quantizers look at a
model in order, and ``rewriting`` writes each ``annotated_claim`` in the form that its row wants, with
``rewrite_checks`` before and ``reannotation`` afterwards. ``pattern_quantizer`` is a table and an intent,
``composable`` several quantizers as one, and ``unmet_rules`` finds rules without effect.
Importing this package does not import torch.
"""
