"""Source that is sent to sessions without live executions: read as text, never imported here. Python 3.9 and IPython are enough."""
