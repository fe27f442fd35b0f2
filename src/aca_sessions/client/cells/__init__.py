"""Sources that are sent to sessions of any endpoint as text.

They are never imported here. They need Python 3.9 and its standard library only.
"""
