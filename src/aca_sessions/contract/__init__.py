"""What is said over HTTP: Azure's data-plane API, per api-version, and our extensions. Pure data, both directions, no I/O."""
