"""Encode and decode the messages of the HTTP API: the requests of each of Azure's api-versions, and this project's extensions.

Client and server share these functions, which do no I/O.
"""
