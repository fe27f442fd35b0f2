"""Speaks the contract. Read in this order: auth → http → interpreter → session → pool."""
