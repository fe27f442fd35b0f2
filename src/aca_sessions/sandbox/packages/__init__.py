"""Install packages for sessions. The host finds, downloads and caches them."""
