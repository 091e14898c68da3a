"""Intent: what a user asked for.

``rules`` are for a module, a class, an operator or the whole model; ``intent`` finds the rule that decides
for a node. Importing this package does not import torch.
"""
