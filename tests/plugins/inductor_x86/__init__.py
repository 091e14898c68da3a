"""Tests of the plugin for Inductor on x86."""
