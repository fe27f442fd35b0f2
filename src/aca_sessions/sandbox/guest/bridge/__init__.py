"""Host calls as cells make them: `tools`, `skills`, `artifacts` and `deps`."""
