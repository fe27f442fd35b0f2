"""Agent sessions, as programs use them."""
