"""The part of optmigd that stands inside the enclave boundary.

One shim agent (`python -m optmigd.enclave_shim`) exists per enclave instance. It starts the image,
owns its memory, keys and policy, and is the only place that sees plaintext pages. The daemon
supervises it over a UNIX socket and relays what it cannot read (docs/architecture.md, Contract 1).
"""
