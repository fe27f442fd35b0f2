"""The messages of the HTTP API: Azure's data-plane API by api-version, and this project's extensions.

Pure functions and data, in both directions. No I/O.
"""
