"""Quantizers: who decides which operators are quantized, and how.

``base`` has the protocol, ``matching`` claims operators for the rows of a table under the user's rules,
``profitability`` leaves those that cost more than they save. ``pattern_quantizer`` annotates what is claimed,
``composable`` lets several quantizers share a model, and ``unmet_rules`` finds rules without effect.
Importing this package does not import torch.
"""
