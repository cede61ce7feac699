"""The compiler tracker's pass: it makes a program mark each page before it writes to it.

It works on the text of optimised LLVM IR, because there every write stands with its exact size and
no plugin is needed: `ir` reads it, `types` knows sizes, `writes` finds what writes memory, and
`addresses` says where; `loops` finds the loops, `plan` merges and hoists, `emit` spells the marks,
`instrument` puts it together.

**What a mark is.** Each thread has a few *slots* in its thread-local storage. Before a write the
program executes, in this order:

    slot = address; mark of its page = 1, if it is 0; the write

The tracker does: read the marks; clear those it read as set; a full barrier for itself *and for
every thread of the program*; read every thread's slots and count their pages as marked; copy the
pages.

**Why nothing is lost.** On x86 stores become visible in program order (TSO), and the compiler keeps
the three in order. Take a write W to page P that the copy of P did not see, so W became visible
after the copy, and after the barrier. Look at the mark M that precedes W.

- M stored. Either that became visible after the tracker cleared P's mark (or the tracker never saw
  it): then the mark is set, and the next collection finds P. Or it was visible before it was
  cleared: then so was the slot's store, which precedes M.
- M read a 1 and left it. Either that was read after the tracker cleared: then somebody has set the
  mark again, and the next collection finds P. Or it was read before, so before the barrier: then
  the slot's store, which precedes it in program order, was made visible by the barrier at the
  latest. (A read may overtake the slot's store on its way to the cache, and this is what the
  barrier of the program's threads is for.)

Where the slot's store is visible before the tracker reads the slots: the slot is overwritten only
by a later region of the same thread, whose stores follow W, which was not visible yet; so the slot
still held P. P counts as marked *again* and is found in the next collection. In every case P is
sent once more. A thread that is parked between M and W has not written; it writes where it runs on,
with its slots, which travel with it.

Slots may be used again only when the writes they stood for are done. So within a run of
instructions without calls each group of writes has its own slots; those of a loop are not used for
anything else in it. A signal handler uses the same slots: the runtime's gate saves them before it
and re-marks them after it.

**What is not marked**: writes to the stack itself (every thread's stack counts as always written).
"""
