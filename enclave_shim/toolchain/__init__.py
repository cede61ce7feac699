"""From unmodified C sources to an enclave image."""
