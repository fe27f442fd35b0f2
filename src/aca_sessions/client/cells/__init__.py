"""Source that is sent to sessions, any endpoint's: read as text, never imported here. Python 3.9 and the standard library are enough."""
