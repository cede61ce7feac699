/* Signals that a program sends itself: actions and timers are kept in the arena and set again on the
 * next host. The kernel calls the program's handlers through one gate in the runtime, which counts
 * them: that is how a wait knows whether it was cut short by the program's own signal or only by a
 * quiesce. The program can neither block nor catch the runtime's two signals. */
#include "rt.h"

#define SIG_DFL 0
#define SIG_IGN 1
#define SA_RESTORER 0x04000000
#define SA_RESETHAND 0x80000000
#define SA_RESTART 0x10000000

/* By which libc cancels a thread. Its handler finds a waiting thread inside the runtime, not at libc's own
 * instruction, so it cannot turn it aside; but libc looks again when a call ends with EINTR. */
#define LIBC_CANCEL 33

/* rdi = signal. Counts, then has the program's handler run (marks.c), with its arguments as they were. */
extern void rt_handler_gate(int);
__asm__(".pushsection optmig_text,\"ax\",@progbits\n"
        ".globl rt_handler_gate\n"
        ".type rt_handler_gate,@function\n"
        "rt_handler_gate:\n"
        "  movabs $rt_handler_of, %rax\n"
        "  push %rdi\n"
        "  push %rsi\n"
        "  push %rdx\n"
        "  mov %rdx, %rsi\n"
        "  call *%rax\n"
        "  pop %rdx\n"
        "  pop %rsi\n"
        "  pop %rdi\n"
        "  mov %rax, %rcx\n"
        "  movabs $rt_handler_with_slots, %rax\n"
        "  jmp *%rax\n"
        ".popsection\n");

__attribute__((used)) u64 rt_handler_of(int sig, struct rt_ucontext *uc) {
  rt_begin_again(uc);
  u64 here = (u64)__builtin_frame_address(0);
  if (here >= ALT_STACKS_BASE && here < ALT_STACKS_END) { /* on top of a call */
    struct rt_thread *t = rt_self();
    t->handled++;
    t->interrupted += sig == LIBC_CANCEL || !(RT->sigactions[sig].flags & SA_RESTART);
  }
  return RT->sigactions[sig].handler;
}

struct kernel_sigaction {
  u64 handler, flags, restorer, mask;
};

i64 rt_kernel_sigaction(int sig, u64 handler, u64 flags, u64 mask) {
  struct kernel_sigaction k = {handler, flags | SA_RESTORER, (u64)rt_restorer, mask};
  return raw4(__NR_rt_sigaction, sig, &k, 0, 8);
}

static i64 set_in_kernel(int sig, const struct rt_sigaction *s) {
  u64 handler = s->handler == SIG_DFL || s->handler == SIG_IGN ? s->handler : (u64)rt_handler_gate;
  /* Handlers for an alternate stack run on the runtime's own, which is the only one the kernel knows. */
  u64 flags = s->flags & ~(u64)SA_RESTORER;
  if (sig == LIBC_CANCEL)
    flags &= ~(u64)SA_RESTART;
  return rt_kernel_sigaction(sig, handler, flags, s->mask & ~RUNTIME_SIGNALS);
}

i64 sys_rt_sigaction(struct call *c) {
  int sig = (int)c->a;
  if (sig < 1 || sig > 64 || c->d != 8)
    return -E_INVAL;
  struct rt_sigaction *mine = &RT->sigactions[sig], old;
  rt_copy(&old, mine, sizeof old);
  if (c->b) {
    const struct kernel_sigaction *k = (const struct kernel_sigaction *)c->b;
    if (sig == 9 || sig == 19)
      return -E_INVAL;
    struct rt_sigaction next = {k->handler, k->flags, k->mask, k->restorer};
    if (!(RUNTIME_SIGNALS & SIGBIT(sig))) {
      rt_copy(mine, &next, sizeof next);
      i64 r = set_in_kernel(sig, mine);
      if (IS_ERR(r))
        return r;
    } else if (next.handler != SIG_DFL && next.handler != SIG_IGN) {
      return -E_INVAL;
    }
  }
  if (c->c) {
    struct kernel_sigaction *k = (struct kernel_sigaction *)c->c;
    k->handler = old.handler;
    k->flags = old.flags;
    k->restorer = old.restorer;
    k->mask = old.mask;
  }
  return 0;
}

i64 sys_rt_sigprocmask(struct call *c) {
  u64 *mask = &c->uc->sigmask, old = *mask;
  if (c->d != 8)
    return -E_INVAL;
  if (c->b) {
    u64 set = *(const u64 *)c->b;
    switch (c->a) {
    case 0: *mask |= set; break;
    case 1: *mask &= ~set; break;
    case 2: *mask = set; break;
    default: return -E_INVAL;
    }
    *mask &= ~RUNTIME_SIGNALS;
  }
  if (c->c)
    *(u64 *)c->c = old;
  return 0;
}

i64 sys_rt_sigsuspend(struct call *c) {
  if (c->b != 8)
    return -E_INVAL;
  u64 mask = *(const u64 *)c->a & ~RUNTIME_SIGNALS;
  struct wait_state w = rt_wait_begin(c);
  i64 r;
  do
    r = raw2(__NR_rt_sigsuspend, &mask, 8);
  while (rt_wait_again(c, &w, r));
  return r;
}

i64 sys_pause(struct call *c) {
  struct call s = *c;
  u64 mask = c->uc->sigmask;
  s.a = (u64)&mask;
  s.b = 8;
  return sys_rt_sigsuspend(&s);
}

i64 sys_rt_sigtimedwait(struct call *c) {
  u64 set = *(const u64 *)c->a & ~RUNTIME_SIGNALS;
  struct timespec64 left = {0, 0};
  i64 deadline = 0;
  if (c->c) {
    left = *(const struct timespec64 *)c->c;
    deadline = rt_virtual_mono_ns() + rt_ns(&left);
  }
  struct wait_state w = rt_wait_begin(c);
  for (;;) {
    i64 r = rt_waiting(c, __NR_rt_sigtimedwait, (i64)&set, (i64)c->b, c->c ? (i64)&left : 0, (i64)c->d, 0, 0);
    if (!rt_wait_again(c, &w, r))
      return r;
    i64 remaining = deadline - rt_virtual_mono_ns();
    rt_put_ns(&left, remaining > 0 ? remaining : 0);
  }
}

/* Frames of the program's handlers carry the runtime's restorer, so this is a program that returns
 * from a frame it kept itself. */
i64 sys_rt_sigreturn(struct call *c) {
  struct rt_ucontext *frame = (struct rt_ucontext *)c->uc->rsp;
  frame->sigmask &= ~RUNTIME_SIGNALS;
  rt_leave_for_frame((u64)frame);
}

/* The program's alternate stack is remembered by nobody: its handlers run on the runtime's. */
i64 sys_sigaltstack(struct call *c) {
  struct {
    u64 sp;
    i32 flags, pad;
    u64 size;
  } *old = (void *)c->b;
  if (old) {
    old->sp = 0;
    old->flags = 2; /* SS_DISABLE */
    old->size = 0;
  }
  return 0;
}

static i64 send_self(struct call *c, i64 sig) {
  if (sig < 0 || sig > 64)
    return -E_INVAL;
  if (sig && SIGBIT(sig) & RUNTIME_SIGNALS && sig != 9 && sig != 19)
    return -E_INVAL;
  if (sig == 19)
    return rt_refuse(c);
  return 1;
}

i64 sys_kill(struct call *c) {
  i64 to = (i32)c->a;
  i64 r = send_self(c, (i32)c->b);
  if (r != 1)
    return r;
  if (to != RT->vpid && to != 0 && to != -RT->vpid)
    return -3; /* ESRCH: the enclave is alone */
  return raw2(__NR_kill, raw0(__NR_getpid), c->b);
}

static i64 to_thread(i64 vtid, u64 sig) {
  struct rt_thread *t = rt_thread_of(vtid);
  if (!t)
    return -3;
  i64 r = raw3(__NR_tgkill, raw0(__NR_getpid), t->tid, sig);
  if (rt_quiesce_is_wanted())
    t->late = 1; /* it may have parked before */
  return r;
}

i64 sys_tkill(struct call *c) {
  i64 r = send_self(c, (i32)c->b);
  return r == 1 ? to_thread((i32)c->a, c->b) : r;
}

i64 sys_tgkill(struct call *c) {
  i64 r = send_self(c, (i32)c->c);
  if (r != 1)
    return r;
  return (i32)c->a == RT->vpid ? to_thread((i32)c->b, c->c) : -3;
}

/* ---- pending signals ----
 *
 * Threads park one after the other, and those that still run go on sending signals and taking those of
 * the process. So what counts is what is pending when the last one is parked, and that the kernel tells
 * in /proc only. It is read if there can be any: a thread had one when it parked, was sent one since
 * (`late`), or the last thread has one; else nothing is pending. */

void rt_signals_save_thread(struct rt_thread *t) {
  raw2(__NR_rt_sigpending, &t->pending, 8); /* the thread's own, and the process's */
  t->pending &= ~RUNTIME_SIGNALS;
}

/* The set that stands behind a name in the text of a file `status`. */
static u64 set_after(const char *text, const char *name) {
  u64 length = rt_strlen(name), set = 0;
  for (; *text; text++) {
    u64 i = 0;
    while (i < length && text[i] == name[i])
      i++;
    if (i < length)
      continue;
    for (text += length; *text && *text != '\n'; text++)
      set = set << 4 | (u64)(*text <= '9' ? *text - '0' : *text - 'a' + 10);
    return set & ~RUNTIME_SIGNALS;
  }
  return 0;
}

/* What is pending now for a thread alone and for the process; 0 if the kernel does not tell. */
static int pending_now(i32 tid, u64 *own, u64 *shared) {
  char text[PAGE_BYTES], digits[12], *to = text;
  static const char before[] = "/proc/self/task/", after[] = "/status";
  int n = 0;
  rt_copy(to, before, sizeof before - 1);
  to += sizeof before - 1;
  do
    digits[n++] = (char)('0' + tid % 10);
  while (tid /= 10);
  while (n)
    *to++ = digits[--n];
  rt_copy(to, after, sizeof after);
  i64 fd = raw4(__NR_openat, -100, text, O_CLOEXEC, 0);
  if (IS_ERR(fd))
    return 0;
  i64 bytes = raw3(__NR_read, fd, text, sizeof text - 1);
  raw1(__NR_close, fd);
  text[bytes > 0 ? bytes : 0] = 0;
  *own = set_after(text, "\nSigPnd:\t");
  *shared = set_after(text, "\nShdPnd:\t");
  return bytes > 0;
}

static void save_pending(void) {
  u64 mine = 0, own = 0, shared = 0;
  raw2(__NR_rt_sigpending, &mine, 8);
  RT->proc_pending = 0;
  if (mine & ~RUNTIME_SIGNALS && pending_now((i32)raw0(__NR_gettid), &own, &shared))
    RT->proc_pending = shared;
  for (u32 i = 0; i < RT_MAX_THREADS; i++) {
    struct rt_thread *t = &RT->threads[i];
    if (t->used == RT_SLOT_USED && (t->late || t->pending) && pending_now(t->tid, &own, &shared))
      t->pending = own;
    t->late = 0;
  }
}

void rt_signals_save(void) {
  save_pending();
  for (int sig = 1; sig <= 64; sig++) {
    struct kernel_sigaction k;
    if (RT->sigactions[sig].flags & SA_RESETHAND && !IS_ERR(raw4(__NR_rt_sigaction, sig, 0, &k, 8)) &&
        k.handler == SIG_DFL)
      RT->sigactions[sig].handler = SIG_DFL;
  }
}

void rt_signals_restore(void) {
  for (int sig = 1; sig <= 64; sig++)
    if (RT->sigactions[sig].handler != SIG_DFL && !(RUNTIME_SIGNALS & SIGBIT(sig)))
      set_in_kernel(sig, &RT->sigactions[sig]);
  for (int sig = 1; sig <= 64; sig++)
    if (RT->proc_pending & SIGBIT(sig))
      raw2(__NR_kill, raw0(__NR_getpid), sig);
}

void rt_signals_restore_thread(struct rt_thread *t) {
  for (int sig = 1; sig <= 64; sig++)
    if (t->pending & SIGBIT(sig))
      raw3(__NR_tgkill, raw0(__NR_getpid), t->tid, sig);
}
