"""The bridge to torchao."""
