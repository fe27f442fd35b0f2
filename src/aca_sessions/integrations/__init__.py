"""Adapters for agent frameworks. Each offers Python sessions as tools in the form that its framework expects."""
