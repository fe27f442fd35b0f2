"""Runs code nobody trusts: our side of the wall."""
