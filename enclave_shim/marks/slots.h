/* The slots of a thread, and marks for code in C that the pass does not see. */
#ifndef OPTMIG_SLOTS_H
#define OPTMIG_SLOTS_H

#define OPTMIG_SLOTS 40 /* toolchain/marking/emit.py: RUN_SLOTS + LOOP_SLOTS */

extern _Thread_local unsigned long optmig_slots[OPTMIG_SLOTS];

/* Mark the pages of the first and the last byte; `bytes` is 1 to 4097. Slots 0 and 1. */
static inline __attribute__((always_inline)) void optmig_mark(const void *at, unsigned long bytes) {
  unsigned long first = (unsigned long)at, last = first + bytes - 1;
  __asm__ volatile("movq %0, %%fs:optmig_slots@tpoff\n"
                   "movq %1, %%fs:optmig_slots@tpoff+8\n"
                   "shrq $12, %0\n"
                   "shrq $12, %1\n"
                   "movb $1, 0x7ff00000(%0)\n"
                   "movb $1, 0x7ff00000(%1)\n"
                   : "+r"(first), "+r"(last)
                   :
                   : "memory", "cc");
}
#endif
