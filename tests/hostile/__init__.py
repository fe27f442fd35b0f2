"""Attempts to get out, to get at others, and to bring the host down. A test with a docstring is a claim, and a row of SECURITY.md."""
