"""Run scripts of other projects as their pages show them."""
