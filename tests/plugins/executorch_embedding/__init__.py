"""Tests of the embedding plugin."""
