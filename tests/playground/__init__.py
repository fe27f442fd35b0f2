"""Test the playground page in a real browser."""
