"""Unpack container images, which sessions use as their root file systems, and describe the Python in them."""
