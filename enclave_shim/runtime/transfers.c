/* Calls that may wait for data, for room, or for readiness.
 *
 * A quiesce cuts them short: with EINTR where nothing was done yet, or with less done than was asked
 * for. Both are invisible to the program: the call goes on where it stopped, on whichever host. */
#include "rt.h"

#define MSG_PEEK 2
#define MSG_WAITALL 0x100
#define SOCK_STREAM 1

/* Files are never waited for, anything else may be. */
static int waits(const struct rt_ofd *o) {
  return o->kind >= OFD_BLOCKER && o->kind != OFD_VIEW;
}

u64 rt_vectors_of(const struct call *c, struct rt_vector *v) {
  u64 bytes = c->c * sizeof *v;
  if (c->c > RT_MAX_VECTORS)
    return 0;
  struct rt_vector to = {(u64)v, bytes}, from = {c->b, bytes};
  i64 n = raw6(__NR_process_vm_readv, raw0(__NR_getpid), (i64)&to, 1, (i64)&from, 1, 0);
  return n == (i64)bytes ? c->c : 0;
}

int rt_readable(u32 fd, int wait_ms) {
  struct {
    i32 fd;
    u16 events, revents;
  } p = {(i32)fd, 1 /* POLLIN */, 0};
  return raw3(__NR_poll, &p, 1, wait_ms) == 1 && p.revents & 1;
}

i64 rt_wait_in(struct call *c) {
  struct wait_state w = rt_wait_begin(c);
  i64 r;
  do
    r = rt_waiting(c, (i64)c->nr, (i64)c->a, (i64)c->b, (i64)c->c, (i64)c->d, (i64)c->e, (i64)c->f);
  while (rt_wait_restarts(c, &w, r));
  return r;
}

i64 rt_fd_forward(struct call *c) {
  struct rt_ofd *o = rt_ofd_of(c->a);
  if (!o)
    return -E_BADF;
  if (o->kind == OFD_TIMERFD)
    return rt_timerfd_read(c, o);
  return waits(o) ? rt_wait_in(c) : rt_file_call(c, c->a, o);
}

static int goes_on(struct call *c, struct wait_state *w, i64 result) {
  int goes = result > 0 ? rt_wait_undisturbed(c, w) : rt_wait_restarts(c, w, result);
  w->handled = c->self->handled; /* one that ran before this much was done, did not stop it */
  return goes;
}

/* (fd, buffer, bytes, …): go on until all is done, or something else than a quiesce stops it. */
static i64 whole(struct call *c) {
  struct wait_state w = rt_wait_begin(c);
  u64 done = 0;
  for (;;) {
    i64 r = rt_waiting(c, (i64)c->nr, (i64)c->a, (i64)(c->b + done), (i64)(c->c - done), (i64)c->d, (i64)c->e,
                       (i64)c->f);
    if (r > 0)
      done += (u64)r;
    if (done == c->c || r == 0 || !goes_on(c, &w, r))
      return done ? (i64)done : r;
  }
}

static void skip(struct rt_vector *v, u64 *count, u64 bytes) {
  u64 first = 0;
  while (first < *count && bytes >= v[first].bytes)
    bytes -= v[first++].bytes;
  for (u64 i = first; i < *count; i++)
    v[i - first] = v[i];
  *count -= first;
  if (*count) {
    v[0].base += bytes;
    v[0].bytes -= bytes;
  }
}

/* writev, or sendmsg with its vectors: `vectors` and `count` are where the call finds them. */
static i64 whole_vectors(struct call *c, u64 *vectors, u64 *count) {
  struct rt_vector copy[RT_MAX_VECTORS];
  if (*count > RT_MAX_VECTORS)
    return rt_wait_in(c); /* the kernel refuses it */
  rt_copy(copy, (const void *)*vectors, *count * sizeof *copy);
  *vectors = (u64)copy;
  struct wait_state w = rt_wait_begin(c);
  u64 done = 0;
  for (;;) {
    i64 r = rt_waiting(c, (i64)c->nr, (i64)c->a, (i64)c->b, (i64)c->c, (i64)c->d, (i64)c->e, (i64)c->f);
    if (r > 0) {
      done += (u64)r;
      skip(copy, count, (u64)r);
    }
    if (!*count || r == 0 || !goes_on(c, &w, r))
      return done ? (i64)done : r;
  }
}

/* write, writev, sendto, sendmsg */
i64 rt_fd_write(struct call *c) {
  struct rt_ofd *o = rt_ofd_of(c->a);
  if (!o)
    return -E_BADF;
  if (!waits(o))
    return rt_file_call(c, c->a, o);
  if (c->nr == __NR_write || c->nr == __NR_sendto)
    return whole(c);
  if (c->nr == __NR_writev)
    return whole_vectors(c, &c->b, &c->c);
  struct {
    u64 name, name_bytes, vectors, count, control, control_bytes, flags;
  } message;
  rt_copy(&message, (const void *)c->b, sizeof message);
  struct call copied = *c;
  copied.b = (u64)&message;
  return whole_vectors(&copied, &message.vectors, &message.count);
}

i64 sys_recvfrom(struct call *c) {
  struct rt_ofd *o = rt_ofd_of(c->a);
  if (!o)
    return -E_BADF;
  int messages = o->kind == OFD_SOCKETPAIR && o->object.type != SOCK_STREAM;
  return c->d & MSG_WAITALL && !(c->d & MSG_PEEK) && !messages ? whole(c) : rt_fd_forward(c);
}

i64 sys_two_fds(struct call *c) {
  u64 other = c->nr == __NR_sendfile ? c->b : c->c;
  struct rt_ofd *one = rt_ofd_of(c->a), *two = rt_ofd_of(other);
  if (!one || !two)
    return -E_BADF;
  if (waits(one) || waits(two))
    return rt_wait_in(c);
  return c->nr == __NR_sendfile ? rt_file_call(c, c->a, one) : rt_file_call(c, other, two);
}

/* poll, ppoll, select, pselect6. The kernel writes what remains back into the timeout of all but
 * poll, whose milliseconds are counted here. A mask of signals never has the runtime's. */
i64 sys_poll(struct call *c) {
  i64 deadline = 0;
  int counted = c->nr == __NR_poll && (i32)c->c > 0;
  if (counted)
    deadline = rt_virtual_mono_ns() + (i64)(i32)c->c * 1000000;
  u64 mask;
  struct {
    const u64 *mask;
    u64 bytes;
  } pair;
  if (c->nr == __NR_ppoll && c->d) {
    mask = *(const u64 *)c->d & ~RUNTIME_SIGNALS;
    c->d = (u64)&mask;
  } else if (c->nr == __NR_pselect6 && c->f) {
    rt_copy(&pair, (const void *)c->f, sizeof pair);
    if (pair.mask) {
      mask = *pair.mask & ~RUNTIME_SIGNALS;
      pair.mask = &mask;
      c->f = (u64)&pair;
    }
  }
  struct wait_state w = rt_wait_begin(c);
  for (;;) {
    i64 r = rt_waiting(c, (i64)c->nr, (i64)c->a, (i64)c->b, (i64)c->c, (i64)c->d, (i64)c->e, (i64)c->f);
    if (!rt_wait_again(c, &w, r))
      return r;
    if (counted) {
      i64 left = (deadline - rt_virtual_mono_ns() + 999999) / 1000000;
      c->c = left > 0 ? (u64)left : 0;
    }
  }
}
