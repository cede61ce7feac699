/* Identity, limits and the end of the process. */
#include "rt.h"

#define RLIMIT_STACK 3
#define RLIMIT_NOFILE 7
#define PR_SET_NAME 15
#define PR_GET_NAME 16
#define PR_SET_PDEATHSIG 1
#define PR_GET_DUMPABLE 3
#define PR_SET_DUMPABLE 4
#define PR_GET_SECCOMP 21
#define PR_CAPBSET_READ 23
#define PR_SET_TIMERSLACK 29
#define PR_GET_TIMERSLACK 30
#define PR_SET_NO_NEW_PRIVS 38
#define PR_GET_NO_NEW_PRIVS 39
#define PR_SET_THP_DISABLE 41
#define PR_GET_THP_DISABLE 42
#define PR_SET_PTRACER 0x59616d61
#define PR_SET_VMA 0x53564d41
#define ARCH_SET_FS 0x1002
#define ARCH_GET_FS 0x1003

i64 sys_exit_group(struct call *c) {
  rt_remove_all_hidden();
  CTL->exit_status = (i32)(c->a & 0xff);
  CTL->state = RT_EXITED;
  rt_event();
  raw1(__NR_exit_group, c->a);
  __builtin_unreachable();
}

i64 sys_getpid(struct call *c) {
  (void)c;
  return RT->vpid;
}

i64 sys_getppid(struct call *c) {
  (void)c;
  return 1;
}

i64 sys_gettid(struct call *c) {
  return c->self->vtid;
}

i64 sys_set_tid_address(struct call *c) {
  c->self->clear_child_tid = c->a;
  return c->self->vtid;
}

i64 sys_set_robust_list(struct call *c) {
  c->self->robust_list = c->a;
  c->self->robust_len = c->b;
  return 0;
}

i64 sys_umask(struct call *c) {
  RT->umask = (u32)c->a & 0777;
  return rt_forward(c);
}

static int virtual_limit(u64 which, u64 *value) {
  if (which == RLIMIT_NOFILE)
    *value = RESERVED_FD_FIRST;
  else if (which == RLIMIT_STACK)
    *value = RT->rlimit_stack;
  else
    return 0;
  return 1;
}

static i64 limit(struct call *c, u64 which, const u64 *next, u64 *old) {
  u64 value;
  (void)c;
  if (virtual_limit(which, &value)) {
    if (next && next[0] > value)
      return -E_PERM;
    if (old)
      old[0] = old[1] = value;
    return 0;
  }
  return raw4(__NR_prlimit64, 0, which, next, old);
}

i64 sys_prlimit64(struct call *c) {
  if (c->a != 0 && (i32)c->a != RT->vpid)
    return -3;
  return limit(c, c->b, (const u64 *)c->c, (u64 *)c->d);
}

i64 sys_getrlimit(struct call *c) {
  return limit(c, c->a, 0, (u64 *)c->b);
}

i64 sys_setrlimit(struct call *c) {
  return limit(c, c->a, (const u64 *)c->b, 0);
}

i64 sys_prctl(struct call *c) {
  char name[16] = {0};
  switch (c->a) {
  case PR_SET_NAME:
    for (u64 i = 0; i < sizeof name; i++) {
      name[i] = i < sizeof name - 1 ? ((const char *)c->b)[i] : 0;
      if (!name[i])
        break;
    }
    rt_copy(c->self->name, name, sizeof name);
    return rt_forward(c);
  case PR_GET_NAME:
  case PR_CAPBSET_READ:
  case PR_GET_SECCOMP:
  case PR_SET_TIMERSLACK:
  case PR_GET_TIMERSLACK:
  case PR_SET_THP_DISABLE:
  case PR_GET_THP_DISABLE: return rt_forward(c);
  /* How the process stands to its host is not the program's to change. */
  case PR_SET_PDEATHSIG:
  case PR_SET_DUMPABLE:
  case PR_SET_NO_NEW_PRIVS:
  case PR_SET_PTRACER: return 0;
  case PR_GET_DUMPABLE: return 0;
  case PR_GET_NO_NEW_PRIVS: return 1;
  case PR_SET_VMA: return -E_INVAL; /* as a kernel that names no mappings */
  default: return rt_refuse(c) + E_NOSYS - E_INVAL;
  }
}

i64 sys_arch_prctl(struct call *c) {
  if (c->a == ARCH_SET_FS || c->a == ARCH_GET_FS) {
    i64 r = rt_forward(c);
    if (c->a == ARCH_SET_FS && r == 0)
      c->self->fs_base = c->b; /* read again at every quiesce; the compiler tracker needs it before */
    return r;
  }
  return rt_refuse(c) + E_NOSYS - E_INVAL;
}

/* Scheduling calls name a thread by its virtual number. */
i64 sys_tid_first(struct call *c) {
  if (c->a != 0) {
    const struct rt_thread *t = rt_thread_of((i32)c->a);
    if (!t)
      return -3; /* ESRCH */
    c->a = (u64)t->tid;
  }
  return rt_forward(c);
}

/* The processors a program has chosen stay what it sees, also where the next host lacks some. */
i64 sys_sched_setaffinity(struct call *c) {
  struct rt_thread *t = c->a ? rt_thread_of((i32)c->a) : c->self;
  u64 bytes = c->b < sizeof t->affinity ? c->b : sizeof t->affinity;
  i64 r = sys_tid_first(c);
  if (IS_ERR(r))
    return r;
  rt_fill(t->affinity, 0, sizeof t->affinity);
  rt_copy(t->affinity, (const void *)c->c, bytes);
  t->affinity_bytes = (u32)bytes;
  return r;
}

i64 sys_sched_getaffinity(struct call *c) {
  struct rt_thread *t = c->a ? rt_thread_of((i32)c->a) : c->self;
  i64 r = sys_tid_first(c);
  if (!IS_ERR(r) && t->affinity_bytes)
    rt_copy((void *)c->c, t->affinity, (u64)r < sizeof t->affinity ? (u64)r : sizeof t->affinity);
  return r;
}

/* Where none of its processors is here, a thread runs on any. */
void rt_thread_settings_restore(const struct rt_thread *t) {
  if (t->affinity_bytes)
    raw3(__NR_sched_setaffinity, 0, t->affinity_bytes, t->affinity);
  if (t->name[0])
    raw2(__NR_prctl, PR_SET_NAME, t->name);
}
