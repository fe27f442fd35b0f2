"""Encode and decode the messages of the HTTP API: Azure's data-plane API by api-version, and this project's extensions.

Client and server share these functions, which do no I/O.
"""
