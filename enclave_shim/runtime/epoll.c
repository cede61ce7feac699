/* epoll: the instances are the host's own, their registrations are kept in the arena as well.
 *
 * What the kernel hands back with an event is the index of the registration's slot, which is turned
 * into the program's data on the way out: so it is always known which registration was delivered, and
 * which ones EPOLLONESHOT has disabled. To wait, the instance itself is polled, and events are taken
 * without waiting, with all signals blocked: a thread can be moved while it waits, never between the
 * kernel's delivery and the note of it. */
#include "rt.h"

#define CTL_ADD 1
#define CTL_DEL 2
#define CTL_MOD 3
#define EPOLLONESHOT (1u << 30)
#define PRIVATE_EVENTS (EPOLLONESHOT | 1u << 31 /* ET */ | 1u << 29 /* WAKEUP */ | 1u << 28 /* EXCLUSIVE */)
#define E_NOSPC 28

struct event {
  u32 events;
  u64 data;
} __attribute__((packed));

static struct rt_watch *find_watch(u32 epoll, u32 target, u32 fd) {
  for (u32 i = 0; i < RT->watch_high; i++) {
    struct rt_watch *w = &RT->watches[i];
    if (w->epoll == epoll + 1 && w->target == target && w->fd == fd)
      return w;
  }
  return 0;
}

static struct rt_watch *free_watch(void) {
  for (u32 i = 0; i < RT->watch_high; i++)
    if (!RT->watches[i].epoll)
      return &RT->watches[i];
  return RT->watch_high < RT_MAX_WATCHES ? &RT->watches[RT->watch_high++] : 0;
}

static i64 control(u64 instance, u64 op, u64 fd, const struct rt_watch *w) {
  struct event e = {w->events, (u64)(w - RT->watches)};
  return raw4(__NR_epoll_ctl, instance, op, fd, &e);
}

i64 sys_epoll_create(struct call *c) {
  i64 fd = rt_forward(c);
  u32 flags = c->nr == __NR_epoll_create1 ? (u32)c->a : 0;
  return IS_ERR(fd) ? fd : rt_new_ofd(c, (u64)fd, OFD_EPOLL, (flags & O_CLOEXEC) | 2, "");
}

i64 sys_epoll_ctl(struct call *c) {
  struct rt_ofd *instance = rt_ofd_of(c->a), *target = rt_ofd_of(c->c);
  if (!instance || !target)
    return -E_BADF;
  if (instance->kind != OFD_EPOLL)
    return -E_INVAL;
  u32 epoll = RT->fds[c->a].ofd, of = RT->fds[c->c].ofd;
  const struct event *wanted = (const struct event *)c->d;
  struct rt_watch *w = find_watch(epoll, of, (u32)c->c);
  if (c->b == CTL_ADD) {
    if (w)
      return -E_EXIST;
    w = free_watch();
    if (!w)
      return -E_NOSPC;
    *w = (struct rt_watch){epoll + 1, of, (u32)c->c, wanted->events, wanted->data, 0, 0};
    i64 r = control(c->a, CTL_ADD, c->c, w);
    if (IS_ERR(r))
      w->epoll = 0;
    return r;
  }
  if (!w)
    return -E_NOENT;
  if (c->b == CTL_DEL) {
    w->epoll = 0;
    return w->absent ? 0 : rt_forward(c);
  }
  if (c->b != CTL_MOD)
    return -E_INVAL;
  struct rt_watch before = *w;
  w->events = wanted->events;
  w->data = wanted->data;
  w->absent = 0;
  i64 r = control(c->a, before.absent ? CTL_ADD : CTL_MOD, c->c, w);
  if (IS_ERR(r))
    *w = before;
  return r;
}

/* The last descriptor of a description is closed: the kernel forgets what it was registered for. */
void rt_watches_forget(u32 ofd) {
  for (u32 i = 0; i < RT->watch_high; i++) {
    struct rt_watch *w = &RT->watches[i];
    if (w->epoll == ofd + 1 || w->target == ofd)
      w->epoll = 0;
  }
}

/* Take what is there; never waits. */
static i64 take(u64 instance, struct event *events, u64 most) {
  rt_lock();
  i64 n = raw4(__NR_epoll_wait, instance, events, most, 0);
  for (i64 i = 0; i < n; i++) {
    struct rt_watch *w = &RT->watches[events[i].data % RT_MAX_WATCHES];
    events[i].data = w->data;
    if (w->events & EPOLLONESHOT)
      w->events &= PRIVATE_EVENTS;
  }
  rt_unlock();
  return n;
}

/* epoll_wait, epoll_pwait: milliseconds; epoll_pwait2: a timespec. */
i64 sys_epoll_wait(struct call *c) {
  struct rt_ofd *o = rt_ofd_of(c->a);
  if (!o)
    return -E_BADF;
  if (o->kind != OFD_EPOLL)
    return -E_INVAL;
  const struct timespec64 *limit = (const struct timespec64 *)c->d;
  int forever, fine = c->nr == __NR_epoll_pwait2;
  i64 span;
  if (fine) {
    forever = !limit;
    span = limit ? rt_ns(limit) : 0;
  } else {
    forever = (i32)c->d < 0;
    span = (i64)(i32)c->d * 1000000;
  }
  i64 deadline = forever || !span ? 0 : rt_virtual_mono_ns() + span;
  u64 mask = 0;
  int masked = c->nr != __NR_epoll_wait && c->e;
  if (masked)
    mask = *(const u64 *)c->e & ~RUNTIME_SIGNALS;
  struct wait_state w = rt_wait_begin(c);
  for (;;) {
    i64 r = take(c->a, (struct event *)c->b, c->c);
    if (r != 0)
      return r;
    struct timespec64 left;
    if (!forever) {
      i64 remaining = span ? deadline - rt_virtual_mono_ns() : 0;
      if (remaining <= 0)
        return 0;
      rt_put_ns(&left, remaining);
    }
    struct {
      i32 fd;
      u16 events, revents;
    } p = {(i32)c->a, 1 /* POLLIN */, 0};
    r = rt_waiting(c, __NR_ppoll, (i64)&p, 1, forever ? 0 : (i64)&left, masked ? (i64)&mask : 0, 8, 0);
    if (IS_ERR(r) && !rt_wait_again(c, &w, r))
      return r;
  }
}

/* Once all descriptors are back at their numbers. */
i64 rt_watches_restore(void) {
  for (u32 i = 0; i < RT->watch_high; i++) {
    struct rt_watch *w = &RT->watches[i];
    if (!w->epoll)
      continue;
    w->absent = w->events & EPOLLONESHOT && !(w->events & ~PRIVATE_EVENTS);
    if (w->absent)
      continue;
    /* a description can be registered under a number that has been closed since */
    i64 fd = rt_fd_ok(w->fd) && RT->fds[w->fd].ofd == w->target ? (i64)w->fd : rt_first_fd(w->target);
    i64 r = control((u64)rt_first_fd(w->epoll - 1), CTL_ADD, (u64)fd, w);
    if (IS_ERR(r))
      return r;
  }
  return 0;
}
