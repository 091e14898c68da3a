"""Tests of the XNNPACK plugin."""
