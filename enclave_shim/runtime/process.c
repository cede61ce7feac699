/* Identity, limits and the end of the process. */
#include "rt.h"

#define RLIMIT_STACK 3
#define RLIMIT_NOFILE 7
#define PR_SET_NAME 15
#define PR_GET_NAME 16
#define ARCH_SET_FS 0x1002
#define ARCH_GET_FS 0x1003

i64 sys_exit_group(struct call *c) {
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
  if (c->a == PR_SET_NAME || c->a == PR_GET_NAME)
    return rt_forward(c);
  return rt_refuse(c) + E_NOSYS - E_INVAL;
}

i64 sys_arch_prctl(struct call *c) {
  if (c->a == ARCH_SET_FS || c->a == ARCH_GET_FS)
    return rt_forward(c); /* read again at every quiesce */
  return rt_refuse(c) + E_NOSYS - E_INVAL;
}

/* Scheduling calls about oneself; other threads' ids would have to be translated. */
i64 sys_tid_first(struct call *c) {
  if (c->a != 0 && (i32)c->a != c->self->vtid)
    return rt_refuse(c);
  c->a = 0;
  return rt_forward(c);
}
