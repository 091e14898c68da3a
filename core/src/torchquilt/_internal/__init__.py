"""Internals: lazy imports, text tables, files written whole, the terminal, defaults of torch.

Nothing here is about quantization, and nothing here is public.
"""
