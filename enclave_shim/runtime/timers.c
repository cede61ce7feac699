/* Timers across a park: timerfds, and the process's interval timers.
 *
 * The kernel does not say of a timer whether it is armed, only what is left of its time, and that is 0
 * not only of one that is not. A timerfd that is due, and whose interrupt has not come yet, tells 0: on
 * a virtual machine for up to some milliseconds. ITIMER_REAL tells 0 while its signal is pending. Either,
 * taken for a timer that is not armed, would never go off again. */
#include "rt.h"

#define TFD_TIMER_ABSTIME 1
#define CLOCK_BOOTTIME 7
#define ITIMER_REAL 0
#define ITIMERS 3
#define US_PER_S 1000000
#define LATEST_INTERRUPT_MS 100

struct itimerspec64 {
  struct timespec64 interval, value;
};

/* ---- timerfds ---- */

i64 sys_timerfd_create(struct call *c) {
  if (c->a > 1 && c->a != CLOCK_BOOTTIME)
    return rt_fd_new_blocker(c); /* an alarm clock that wakes the host */
  i64 fd = rt_forward(c);
  if (!IS_ERR(fd))
    fd = rt_new_ofd(c, (u64)fd, OFD_TIMERFD, (u32)c->b, "");
  if (!IS_ERR(fd))
    rt_ofd_of((u64)fd)->object.type = (u32)c->a;
  return fd;
}

i64 sys_timerfd_settime(struct call *c) {
  struct rt_ofd *o = rt_ofd_of(c->a);
  if (!o)
    return -E_BADF;
  if (o->kind != OFD_TIMERFD)
    return rt_forward(c);
  struct itimerspec64 real = *(const struct itimerspec64 *)c->c;
  int armed = (real.value.sec | real.value.nsec) != 0;
  if (armed && c->b & TFD_TIMER_ABSTIME) {
    i64 due = rt_ns(&real.value) - rt_clock_offset(o->object.type);
    rt_put_ns(&real.value, due > 0 ? due : 1);
  }
  i64 r = raw4(__NR_timerfd_settime, c->a, c->b, &real, c->d);
  if (!IS_ERR(r)) {
    o->object.value = armed ? (u64)rt_virtual_mono_ns() : 0;
    o->object.interval_ns = rt_ns(&real.interval);
  }
  return r;
}

/* A timer that goes off once is not armed any more when that was read. */
i64 rt_timerfd_read(struct call *c, struct rt_ofd *o) {
  u64 armed = o->object.value;
  i64 r = rt_wait_in(c);
  if (r > 0 && !o->object.interval_ns) /* and nobody has armed it again meanwhile */
    __atomic_compare_exchange_n(&o->object.value, &armed, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  return r;
}

static void arm(u32 fd, const struct rt_object *b) {
  struct itimerspec64 t;
  i64 due = b->due_ns - rt_clock_offset(b->type);
  rt_put_ns(&t.interval, b->interval_ns);
  rt_put_ns(&t.value, due > 0 ? due : 1);
  raw4(__NR_timerfd_settime, fd, TFD_TIMER_ABSTIME, &t, 0);
}

/* Whether a timer of which nothing is left, and nothing can be read, is due. One that goes off once may
 * have been read by a thread that was parked before it could note that: then nothing comes any more. */
static int is_due(u32 fd, struct rt_object *b) {
  if (b->value && !b->interval_ns && !rt_readable(fd, LATEST_INTERRUPT_MS))
    b->value = 0;
  return b->value != 0;
}

/* A timer that has expired is armed with a time in the past: it expires again at once, as often.
 * It goes on while it is read: an expiry or a long pause in between would get lost. */
void rt_timerfd_save(u32 fd, struct rt_ofd *o) {
  struct rt_object *b = &o->object;
  struct itimerspec64 t;
  u64 expired = 0, more;
  i64 now, took;
  int tries = 0;
  do {
    if (rt_readable(fd, 0) && raw3(__NR_read, fd, &more, 8) == 8)
      expired += more;
    now = rt_clock_ns((int)b->type);
    raw2(__NR_timerfd_gettime, fd, &t);
    took = rt_clock_ns((int)b->type) - now;
  } while (++tries < ONE_INSTANT_TRIES && (rt_readable(fd, 0) || took > ONE_INSTANT_NS));
  i64 left = rt_ns(&t.value);
  now += rt_clock_offset(b->type);
  b->interval_ns = rt_ns(&t.interval);
  b->due_ns = left || expired || is_due(fd, b) ? now + left - (i64)expired * b->interval_ns : 0;
  if (expired)
    arm(fd, b);
}

/* The virtual clock goes on from here. */
void rt_timerfds_start(void) {
  for (u32 fd = 0; fd < RT->fd_high; fd++) {
    struct rt_ofd *o = rt_ofd_of(fd);
    if (o && o->kind == OFD_TIMERFD && o->object.due_ns)
      arm(fd, &o->object);
  }
}

/* ---- interval timers ---- */

void rt_interval_timers_stop(void) {
  static const u64 none[4] = {0, 0, 0, 0};
  for (int i = 0; i < ITIMERS; i++)
    raw3(__NR_setitimer, i, none, RT->itimer[i]);
}

/* What is left of the real one's time has gone on meanwhile. */
void rt_interval_timers_start(void) {
  for (int i = 0; i < ITIMERS; i++) {
    u64 t[4] = {RT->itimer[i][0], RT->itimer[i][1], RT->itimer[i][2], RT->itimer[i][3]};
    if (i == ITIMER_REAL && t[2] | t[3]) {
      i64 us = (rt_virtual_mono_ns() - (i64)RT->parked_mono_ns) / (NS_PER_S / US_PER_S);
      i64 left = (i64)(t[2] * US_PER_S + t[3]) - us;
      left = left > 0 ? left : 1;
      t[2] = (u64)left / US_PER_S;
      t[3] = (u64)left % US_PER_S;
    } else if (i == ITIMER_REAL) { /* its signal is pending: the next comes a period later, if there is one */
      t[2] = t[0];
      t[3] = t[1];
    }
    if (t[2] | t[3])
      raw3(__NR_setitimer, i, t, 0);
  }
}
