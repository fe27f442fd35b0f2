"""Durable sessions: a store in a folder, in Redis or in Azure Blob Storage, the sealing of what is stored, and the saves of sessions.

`store` opens a store, `sealing` protects streams, `heads` has the record that names an owner's saves and lease, `saves` has the rest.
"""
