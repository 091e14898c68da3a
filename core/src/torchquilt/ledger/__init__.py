"""The ledger: every decision about a model, and the reason for each operator that stays in float.

``rows`` has the values that a ledger consists of, ``lowering_status`` says how each operator runs after
lowering, ``ledger`` puts them together, counts, compares and prints them. Importing this package does not
import torch.
"""
