"""Packages that sessions install: resolved and cached by the host."""
