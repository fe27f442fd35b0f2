"""Attempts to escape a session, to reach other sessions, and to bring the host down. The docstring of a test is a claim and a row of
SECURITY.md.
"""
