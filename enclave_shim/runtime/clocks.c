/* Time as the enclave sees it: the monotonic clocks never step back across a move.
 *
 * virtual = this host's clock + an offset that travels. At a restore the offset is chosen so that
 * the virtual clock goes on from where it was parked, plus the wall-clock time in between as far as
 * that is believable: two hosts' wall clocks may disagree. Waits with an absolute time are turned
 * into relative ones each time around, because a quiesce may end on another host. */
#include "rt.h"

#define CLOCK_REALTIME 0
#define CLOCK_MONOTONIC 1
#define CLOCK_PROCESS_CPUTIME 2
#define CLOCK_THREAD_CPUTIME 3
#define CLOCK_MONOTONIC_RAW 4
#define CLOCK_MONOTONIC_COARSE 6
#define CLOCK_BOOTTIME 7
#define TIMER_ABSTIME 1
#define LONGEST_GAP_NS (600 * NS_PER_S) /* more than this between park and run is not believed */
#define FUTEX_WAIT 0
#define FUTEX_WAIT_BITSET 9
#define FUTEX_LOCK_PI 6
#define FUTEX_WAIT_REQUEUE_PI 11
#define FUTEX_LOCK_PI2 13
#define FUTEX_CLOCK_REALTIME 256
#define FUTEX_CMD(op) ((op) & ~(128 | FUTEX_CLOCK_REALTIME))

i64 rt_clock_ns(int id) {
  struct timespec64 t;
  i64 r = raw2(__NR_clock_gettime, id, &t);
  return IS_ERR(r) ? 0 : t.sec * NS_PER_S + t.nsec;
}

i64 rt_clock_offset(i64 id) {
  switch (id) {
  case CLOCK_MONOTONIC:
  case CLOCK_MONOTONIC_RAW:
  case CLOCK_MONOTONIC_COARSE:
  case CLOCK_BOOTTIME: return RT->mono_offset_ns;
  case CLOCK_PROCESS_CPUTIME: return RT->cpu_offset_ns;
  default: return 0;
  }
}

void rt_put_ns(struct timespec64 *t, i64 ns) {
  t->sec = ns / NS_PER_S;
  t->nsec = ns % NS_PER_S;
}

i64 rt_ns(const struct timespec64 *t) {
  const i64 longest = (1l << 62) / NS_PER_S;
  return t->sec > longest ? 1l << 62 : t->sec * NS_PER_S + t->nsec;
}

static int valid(const struct timespec64 *t) {
  return t->sec >= 0 && t->nsec >= 0 && t->nsec < NS_PER_S;
}

i64 rt_virtual_mono_ns(void) {
  return rt_clock_ns(CLOCK_MONOTONIC) + RT->mono_offset_ns;
}

/* Both clocks of one instant: what passes between two readings, the virtual clock would lose. */
static void read_both(i64 *mono, i64 *real) {
  i64 shortest = 1l << 62;
  for (int tries = 0; tries < ONE_INSTANT_TRIES && shortest > ONE_INSTANT_NS; tries++) {
    i64 before = rt_clock_ns(CLOCK_MONOTONIC), between = rt_clock_ns(CLOCK_REALTIME);
    i64 took = rt_clock_ns(CLOCK_MONOTONIC) - before;
    if (took >= shortest)
      continue;
    shortest = took;
    *mono = before + took / 2;
    *real = between;
  }
}

void rt_clocks_save(void) {
  i64 mono = 0, real = 0;
  read_both(&mono, &real);
  RT->parked_mono_ns = (u64)(mono + RT->mono_offset_ns);
  RT->parked_real_ns = (u64)real;
  RT->cpu_offset_ns += rt_clock_ns(CLOCK_PROCESS_CPUTIME);
}

/* The CPU clock of the process that goes on is not counted twice: neither that of the same
 * process after a park, nor what a new one has used while it waited. */
void rt_cpu_clock_resumed(void) {
  RT->cpu_offset_ns -= rt_clock_ns(CLOCK_PROCESS_CPUTIME);
}

void rt_clocks_restore(void) {
  i64 mono = 0, real = 0;
  read_both(&mono, &real);
  i64 gap = real - (i64)RT->parked_real_ns;
  if (gap < 0 || gap > LONGEST_GAP_NS)
    gap = 0;
  RT->mono_offset_ns = (i64)RT->parked_mono_ns + gap - mono;
  rt_cpu_clock_resumed();
}

/* A negative clock is that of a process or thread, by its number. */
static i64 numbered_clock(struct call *c, i64 *offset) {
  i64 vtid = ~((i64)(i32)c->a >> 3), of_thread = c->a & 4;
  const struct rt_thread *t = vtid ? rt_thread_of(vtid) : c->self;
  if (!of_thread && (vtid == 0 || vtid == RT->vpid)) {
    c->a = (u64)~7l | (c->a & 7); /* number 0: the process itself */
    *offset = RT->cpu_offset_ns;
    return 0;
  }
  if (!t || !of_thread)
    return -E_INVAL;
  c->a = (u64)((~(i64)t->tid << 3) | (i64)(c->a & 7));
  *offset = t->cpu_offset_ns;
  return 0;
}

i64 sys_clock_gettime(struct call *c) {
  i64 id = (i32)c->a;
  i64 offset = id == CLOCK_THREAD_CPUTIME ? c->self->cpu_offset_ns : rt_clock_offset(id);
  if (id < 0) {
    i64 r = numbered_clock(c, &offset);
    if (IS_ERR(r))
      return r;
  }
  i64 r = rt_forward(c);
  if (!IS_ERR(r) && offset) {
    struct timespec64 *t = (struct timespec64 *)c->b;
    rt_put_ns(t, rt_ns(t) + offset);
  }
  return r;
}

/* What earlier processes of the enclave have used counts as time in user mode. */
i64 sys_getrusage(struct call *c) {
  i64 r = rt_forward(c), who = (i32)c->a;
  i64 offset = who == 0 ? RT->cpu_offset_ns : who == 1 /* RUSAGE_THREAD */ ? c->self->cpu_offset_ns : 0;
  if (!IS_ERR(r) && offset) {
    i64 *used = (i64 *)c->b; /* ru_utime: seconds, microseconds */
    i64 us = used[0] * 1000000 + used[1] + offset / 1000;
    used[0] = us / 1000000;
    used[1] = us % 1000000;
  }
  return r;
}

i64 sys_times(struct call *c) {
  const i64 tick_ns = NS_PER_S / 100;
  i64 r = rt_forward(c);
  if (IS_ERR(r))
    return r;
  if (c->a)
    *(i64 *)c->a += RT->cpu_offset_ns / tick_ns;
  return r + RT->mono_offset_ns / tick_ns;
}

/* Sleep until a virtual time of that clock; `left` gets what remains after a signal of the program. */
static i64 sleep_until(struct call *c, i64 clock, i64 deadline, struct timespec64 *left) {
  struct wait_state w = rt_wait_begin(c);
  for (;;) {
    i64 remaining = deadline - rt_clock_ns((int)clock) - rt_clock_offset(clock);
    if (remaining <= 0)
      return 0;
    struct timespec64 t;
    rt_put_ns(&t, remaining);
    i64 r = rt_waiting(c, __NR_clock_nanosleep, clock, 0, (i64)&t, 0, 0, 0);
    if (rt_wait_again(c, &w, r))
      continue;
    if (r == -E_INTR && left) {
      remaining = deadline - rt_clock_ns((int)clock) - rt_clock_offset(clock);
      rt_put_ns(left, remaining > 0 ? remaining : 0);
    }
    return r;
  }
}

i64 sys_nanosleep(struct call *c) {
  const struct timespec64 *t = (const struct timespec64 *)c->a;
  if (!valid(t))
    return -E_INVAL;
  return sleep_until(c, CLOCK_MONOTONIC, rt_virtual_mono_ns() + rt_ns(t), (struct timespec64 *)c->b);
}

i64 sys_clock_nanosleep(struct call *c) {
  const struct timespec64 *t = (const struct timespec64 *)c->c;
  i64 clock = (i64)(i32)c->a;
  if (clock != CLOCK_REALTIME && clock != CLOCK_MONOTONIC && clock != CLOCK_BOOTTIME)
    return rt_refuse(c) + E_NOSYS - E_NOTSUP;
  if (!valid(t))
    return -E_INVAL;
  if (c->b & TIMER_ABSTIME)
    return sleep_until(c, clock, rt_ns(t), 0);
  return sleep_until(c, CLOCK_MONOTONIC, rt_virtual_mono_ns() + rt_ns(t), (struct timespec64 *)c->d);
}

/* A futex wait compares its word again on every host, so waiting again is always right. */
i64 sys_futex(struct call *c) {
  u64 cmd = FUTEX_CMD(c->b);
  if (cmd == FUTEX_LOCK_PI || cmd == FUTEX_LOCK_PI2 || cmd == FUTEX_WAIT_REQUEUE_PI)
    return rt_refuse(c); /* the kernel would keep an owner's thread id in the word */
  if (cmd != FUTEX_WAIT && cmd != FUTEX_WAIT_BITSET)
    return rt_forward(c);
  const struct timespec64 *t = (const struct timespec64 *)c->d;
  int realtime = (c->b & FUTEX_CLOCK_REALTIME) != 0 && cmd == FUTEX_WAIT_BITSET;
  i64 clock = realtime ? CLOCK_REALTIME : CLOCK_MONOTONIC;
  i64 deadline = 0;
  if (t) {
    if (!valid(t))
      return -E_INVAL;
    deadline = rt_ns(t) + (cmd == FUTEX_WAIT ? rt_virtual_mono_ns() : 0);
  }
  /* always as a bitset wait with this host's absolute time */
  u64 op = FUTEX_WAIT_BITSET | (c->b & 128) | (realtime ? FUTEX_CLOCK_REALTIME : 0);
  u64 bits = cmd == FUTEX_WAIT ? 0xffffffff : c->f;
  struct wait_state w = rt_wait_begin(c);
  i64 r;
  do {
    struct timespec64 until;
    i64 real = deadline - rt_clock_offset(clock);
    rt_put_ns(&until, real > 0 ? real : 0);
    r = rt_waiting(c, __NR_futex, (i64)c->a, (i64)op, (i64)c->c, t ? (i64)&until : 0, 0, (i64)bits);
  } while (rt_wait_again(c, &w, r));
  return r;
}
