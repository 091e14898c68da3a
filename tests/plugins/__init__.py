"""Tests of the plugins, and what the tests of several plugins need."""
