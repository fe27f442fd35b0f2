"""Serves the contract from sandboxes."""
