/* Threads: made by the kernel, named by the runtime.
 *
 * A thread is a slot in the arena: its virtual id, which stays the same on every host, and its
 * alternate stack, whose address tells a signal handler which thread it serves. A new thread starts
 * from a copy of its parent's SIGSYS frame, put on its own alternate stack, and "returns" from it.
 *
 * `ctl.running` counts the threads that are neither parked nor gone. Whoever takes it to zero while
 * a quiesce is wanted is the last one, and does what must be done once for the whole process; so it
 * makes no difference whether that thread parks or exits. */
#include "rt.h"

#define CLONE_VM 0x100ul
#define CLONE_FS 0x200ul
#define CLONE_FILES 0x400ul
#define CLONE_SIGHAND 0x800ul
#define CLONE_THREAD 0x10000ul
#define CLONE_SYSVSEM 0x40000ul
#define CLONE_SETTLS 0x80000ul
#define CLONE_PARENT_SETTID 0x100000ul
#define CLONE_CHILD_CLEARTID 0x200000ul
#define CLONE_DETACHED 0x400000ul
#define CLONE_CHILD_SETTID 0x1000000ul
#define AS_A_THREAD (CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD)
#define KNOWN_FLAGS                                                                                          \
  (AS_A_THREAD | CLONE_SYSVSEM | CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID |                 \
   CLONE_DETACHED | CLONE_CHILD_SETTID)
#define ARCH_SET_FS 0x1002
#define FUTEX_WAIT 0
#define FUTEX_WAKE 1
#define FRAME_SLACK_BYTES 512 /* below a parked frame: nothing there is needed any more */

void rt_lock(void) {
  u32 *word = &RT->lock, old = 0;
  if (__atomic_compare_exchange_n(word, &old, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
    return;
  while (__atomic_exchange_n(word, 2, __ATOMIC_ACQUIRE) != 0)
    raw4(__NR_futex, word, FUTEX_WAIT, 2, 0);
}

void rt_unlock(void) {
  if (__atomic_exchange_n(&RT->lock, 0, __ATOMIC_RELEASE) == 2)
    raw3(__NR_futex, &RT->lock, FUTEX_WAKE, 1);
}

/* What a new kernel thread does first, on its own alternate stack, with all signals blocked. */
__attribute__((used, noreturn)) static void thread_begins(struct rt_thread *t) {
  rt_arm_thread(t);
  rt_enter_program(t);
}

/* clone(2): the child calls `entry(t)` on the given stack; the parent gets the kernel's answer. The
 * kernel notes the thread's number before it runs: a signal can be sent to it from then on. */
static i64 start_thread(u64 flags, u64 stack, u64 tls, u64 child_tid, void (*entry)(struct rt_thread *),
                        struct rt_thread *t) {
  register i64 r10 __asm__("r10") = (i64)child_tid;
  register i64 r8 __asm__("r8") = (i64)tls;
  register u64 r12 __asm__("r12") = (u64)entry;
  register u64 r13 __asm__("r13") = (u64)t;
  i64 ret;
  __asm__ volatile("syscall\n"
                   "test %%rax, %%rax\n"
                   "jnz 1f\n"
                   "xor %%ebp, %%ebp\n"
                   "mov %%r13, %%rdi\n"
                   "call *%%r12\n"
                   "ud2\n"
                   "1:"
                   : "=a"(ret)
                   : "a"(__NR_clone), "D"(flags | CLONE_PARENT_SETTID), "S"(stack & ~15ul), "d"(&t->tid),
                     "r"(r10), "r"(r8), "r"(r12), "r"(r13)
                   : "rcx", "r11", "memory");
  return ret;
}

struct rt_thread *rt_thread_of(i64 vtid) {
  for (u32 i = 0; i < RT_MAX_THREADS; i++)
    if (RT->threads[i].used && RT->threads[i].vtid == vtid)
      return &RT->threads[i];
  return 0;
}

static struct rt_thread *take_slot(void) {
  for (u32 i = 0; i < RT_MAX_THREADS; i++) {
    struct rt_thread *t = &RT->threads[i];
    if (__atomic_load_n(&t->used, __ATOMIC_ACQUIRE))
      continue;
    rt_fill(t, 0, sizeof *t);
    t->stack_low = ALT_STACKS_BASE + i * ALT_STACK_BYTES;
    t->stack_bytes = ALT_STACK_BYTES;
    t->vtid = RT->next_vtid++;
    t->used = RT_SLOT_USED;
    return t;
  }
  return 0;
}

/* The parent's frame, moved to the child's alternate stack, with what differs between the two. */
static struct rt_ucontext *copy_frame(struct call *c, struct rt_thread *t, u64 stack) {
  u64 fp = c->uc->fpstate;
  u32 fp_bytes = fp ? *(u32 *)(fp + 464 + 4) : 0; /* struct _fpx_sw_bytes.extended_size */
  u64 top = t->stack_low + t->stack_bytes;
  u64 fp_to = (top - fp_bytes - 64) & ~63ul;
  struct rt_ucontext *uc = (struct rt_ucontext *)((fp_to - sizeof(struct rt_ucontext) - 256) & ~63ul);
  rt_copy((void *)fp_to, (void *)fp, fp_bytes);
  rt_copy(uc, c->uc, sizeof *uc);
  uc->fpstate = fp ? fp_to : 0;
  uc->stack.sp = t->stack_low;
  uc->stack.size = t->stack_bytes;
  uc->stack.flags = 0;
  uc->rsp = stack;
  uc->rax = 0;
  return uc;
}

i64 sys_clone(struct call *c) {
  u64 flags = c->a;
  if ((flags & AS_A_THREAD) != AS_A_THREAD || flags & ~KNOWN_FLAGS || !c->b)
    return rt_refuse(c); /* fork and its kin */
  rt_lock();
  struct rt_thread *t = take_slot();
  rt_unlock();
  if (!t)
    return -E_AGAIN;
  struct rt_ucontext *uc = copy_frame(c, t, c->b);
  t->frame = (u64)uc;
  t->stack_top = c->b;
  if (flags & CLONE_SETTLS)
    t->fs_base = c->e;
  i32 vtid = t->vtid;
  if (flags & CLONE_CHILD_CLEARTID)
    t->clear_child_tid = c->d;
  if (flags & CLONE_PARENT_SETTID)
    *(i32 *)c->c = vtid;
  if (flags & CLONE_CHILD_SETTID)
    *(i32 *)c->d = vtid;
  __atomic_add_fetch(&RT->thread_count, 1, __ATOMIC_SEQ_CST);
  __atomic_add_fetch(&CTL->threads, 1, __ATOMIC_SEQ_CST);
  __atomic_add_fetch(&CTL->running, 1, __ATOMIC_SEQ_CST);
  t->affinity_bytes = c->self->affinity_bytes;
  rt_copy(t->affinity, c->self->affinity, sizeof t->affinity);
  rt_copy(t->name, c->self->name, sizeof t->name);
  u64 passed = flags & ~(CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_DETACHED);
  i64 r = start_thread(passed, (u64)uc - FRAME_SLACK_BYTES, c->e, c->d, thread_begins, t);
  if (IS_ERR(r)) {
    __atomic_sub_fetch(&RT->thread_count, 1, __ATOMIC_SEQ_CST);
    __atomic_sub_fetch(&CTL->threads, 1, __ATOMIC_SEQ_CST);
    __atomic_sub_fetch(&CTL->running, 1, __ATOMIC_SEQ_CST);
    __atomic_store_n(&t->used, 0, __ATOMIC_RELEASE);
    return r;
  }
  return vtid;
}

/* The end of one thread. Its slot, and with it the stack this runs on, may be taken by another
 * thread as soon as it is free, so nothing may touch the stack after that. */
static void __attribute__((noreturn)) leave(struct rt_thread *t, u64 status) {
  __asm__ volatile("movl $0, %0\n"
                   "syscall\n"
                   "ud2"
                   : "=m"(t->used)
                   : "a"(__NR_exit), "D"(status)
                   : "rcx", "r11", "memory");
  __builtin_unreachable();
}

/* The last one to stop may be one that ends. Then all counts as parked before it has left its slot and the
 * kernel has told whoever joins it; so the slot says how far it is, and on the next host it ends again. */
i64 sys_exit(struct call *c) {
  if (__atomic_sub_fetch(&RT->thread_count, 1, __ATOMIC_SEQ_CST) == 0)
    return sys_exit_group(c);
  __atomic_sub_fetch(&CTL->threads, 1, __ATOMIC_SEQ_CST);
  if (c->self->clear_child_tid) { /* the kernel clears it, and wakes whoever joins */
    rt_mark(c->self->clear_child_tid, 4);
    c->self->out_at[0] = c->self->clear_child_tid;
    c->self->out_bytes[0] = 4;
  }
  c->self->used = RT_SLOT_ENDS;
  rt_thread_stops();
  leave(c->self, c->a);
}

/* ---- on the next host ---- */

__attribute__((used, noreturn)) static void thread_returns(struct rt_thread *t) {
  if (t->clear_child_tid)
    raw1(__NR_set_tid_address, t->clear_child_tid);
  __atomic_add_fetch(&CTL->running, 1, __ATOMIC_SEQ_CST);
  raw3(__NR_futex, &CTL->running, FUTEX_WAKE, 1);
  while (CTL->state != RT_RUNNING)
    raw4(__NR_futex, &CTL->state, FUTEX_WAIT, RT_PREPARED, 0);
  rt_return_to_program(t);
}

__attribute__((used, noreturn)) static void thread_ends(struct rt_thread *t) {
  raw1(__NR_set_tid_address, t->clear_child_tid);
  while (CTL->state != RT_RUNNING)
    raw4(__NR_futex, &CTL->state, FUTEX_WAIT, RT_PREPARED, 0);
  leave(t, 0);
}

/* Make every thread but `mine` anew; each waits until the state is RT_RUNNING. */
int rt_threads_restore(struct rt_thread *mine) {
  u32 started = 0;
  CTL->running = 0;
  CTL->threads = RT->thread_count;
  for (u32 i = 0; i < RT_MAX_THREADS; i++) {
    struct rt_thread *t = &RT->threads[i];
    if (!t->used || t == mine)
      continue;
    int ends = t->used == RT_SLOT_ENDS; /* it counts no more */
    u64 stack = ends ? t->stack_low + t->stack_bytes : t->frame - FRAME_SLACK_BYTES;
    i64 r = start_thread(AS_A_THREAD | CLONE_SYSVSEM, stack, 0, 0, ends ? thread_ends : thread_returns, t);
    if (IS_ERR(r))
      return (int)r;
    started += !ends;
  }
  for (u32 seen; (seen = CTL->running) != started;)
    raw4(__NR_futex, &CTL->running, FUTEX_WAIT, seen, 0);
  __atomic_add_fetch(&CTL->running, 1, __ATOMIC_SEQ_CST); /* this one */
  return 0;
}
