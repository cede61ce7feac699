"""The compiler tracker's pass: it makes a program mark each page before it writes to it.

It works on the text of optimised LLVM IR, because there every write stands with its exact size and
no plugin is needed: `ir` reads it, `types` knows sizes, `writes` finds what writes memory, and
`addresses` says where; `loops` finds the loops, `plan` merges and hoists, `emit` spells the marks,
`instrument` puts it together.

**What a mark is.** Each thread has a few *slots* in its thread-local storage. Before a write the
program executes, in this order:

    slot = address; mark of its page = 1; the write

The tracker does: read the marks; clear those it read as set; full barrier; read every thread's
slots and count their pages as marked; copy the pages.

**Why nothing is lost.** On x86 stores become visible in program order (TSO), and each of the
program's three is a store, kept in order by a compiler barrier. Take a write W to page P that the
copy of P did not see, so W became visible after the copy. Look at the mark M that precedes W.
Either M became visible after the tracker cleared P's mark (or the tracker never saw it): then the
mark is set, and the next collection finds P. Or M was visible before it was cleared: then so was
the slot's store, which precedes M. The slot is overwritten only by a later region of the same
thread, whose stores follow W, which was not visible yet; so when the tracker read the slots, after
its barrier, this slot still held P: P counts as marked *again* and is found in the next
collection. In every case P is sent once more. A thread that is parked between M and W has not
written; it writes where it runs on, with its slots, which travel with it.

Slots may be used again only when the writes they stood for are done. So within a run of
instructions without calls each group of writes has its own slots; those of a loop are not used for
anything else in it. A signal handler uses the same slots: the runtime's gate saves them before it
and re-marks them after it.

**What is not marked**: writes to the stack itself (every thread's stack counts as always written).
"""
