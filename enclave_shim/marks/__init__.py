"""C sources of what a program that marks its writes is linked with; see `toolchain.marking`."""
