"""Tests of the ExecuTorch target."""
