"""The pure layer: bytes and events in, bytes and events out.

Everything two daemons or two shim agents must agree on is here, and nothing else: no sockets, no
tasks, no clock, no randomness. Where time or randomness is needed, it is an argument. So every
rule of the protocol can be tested without a network, and read without knowing trio.

Import from the modules; this package re-exports nothing.
"""
