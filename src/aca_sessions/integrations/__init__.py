"""Adapters for agent frameworks: each speaks its framework's words over one session."""
