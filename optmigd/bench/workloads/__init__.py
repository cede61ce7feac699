"""C sources of the programs that are measured; plain programs, which know of no enclave."""
