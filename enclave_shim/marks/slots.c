/* A thread's slots, and what tells the runtime and the shim agent that a program marks its writes.
 * See toolchain/marking/__init__.py for what the slots are for. */
#include "slots.h"

_Thread_local unsigned long optmig_slots[OPTMIG_SLOTS];

/* Where the slots stand relative to a thread's FS base, and how many there are. */
__asm__(".pushsection .rodata.optmig,\"aR\",@progbits\n"
        ".balign 8\n"
        ".globl optmig_slots_offset\n"
        "optmig_slots_offset:\n"
        "  .quad optmig_slots@tpoff\n"
        ".globl optmig_slots_count\n"
        "optmig_slots_count:\n"
        "  .quad 40\n"
        ".popsection\n"
        ".pushsection optmig_marks,\"aR\",@progbits\n"
        "  .asciz \"marked\"\n"
        ".popsection\n");
_Static_assert(OPTMIG_SLOTS == 40, "keep optmig_slots_count equal to OPTMIG_SLOTS");
