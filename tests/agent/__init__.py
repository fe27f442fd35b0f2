"""Test agent sessions as programs use them."""
