"""Container images as the roots of sessions."""
