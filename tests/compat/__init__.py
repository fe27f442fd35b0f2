"""Other projects' scripts, as their pages show them."""
