/* Objects of the kernel that belong to the enclave alone: pipes, socket pairs, eventfds, signalfds, and
 * timerfds (timers.c). They are the host's own while the program runs, so they behave exactly as they should,
 * and are made anew on the next host with what stood in them.
 *
 * What stands in them is looked at while every thread is parked, and left as it is (a pipe is copied
 * by tee(2), a socket's queue is peeked at, an eventfd's count is written back at once): a migration
 * that is cancelled has changed nothing. */
#include "rt.h"

#define AF_UNIX 1
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOCK_TYPE 0xf
#define SOL_SOCKET 1
#define SO_SNDBUF 7
#define SO_RCVBUF 8
#define SO_RCVTIMEO 20
#define SO_SNDTIMEO 21
#define SO_PEEK_OFF 42
#define MSG_OOB 1
#define MSG_PEEK 2
#define MSG_TRUNC 0x20
#define MSG_DONTWAIT 0x40
#define MSG_NOSIGNAL 0x4000
#define FIONREAD 0x541b
#define F_GETFL 3
#define F_SETFL 4
#define F_SETPIPE_SZ 1031
#define F_GETPIPE_SZ 1032
#define KEPT_FLAGS (O_ACCMODE | O_NONBLOCK | O_DIRECT)
#define EFD_SEMAPHORE 1
#define MAX_SEMAPHORE 65536     /* it can only be counted one by one */
#define FILLING_BYTES (4 << 20) /* the buffer of a socket while what stood in it is put back */

/* ---- making them ---- */

static i64 new_pair(struct call *c, u32 kind, const i32 *fds, const u32 *flags, u32 type) {
  i64 r = rt_new_ofd(c, (u64)fds[0], kind, flags[0], "");
  if (IS_ERR(r)) {
    raw1(__NR_close, fds[1]);
    return r;
  }
  r = rt_new_ofd(c, (u64)fds[1], kind, flags[1], "");
  if (IS_ERR(r)) {
    struct call close_first = {.nr = __NR_close, .a = (u64)fds[0], .uc = c->uc, .self = c->self};
    sys_close(&close_first);
    return r;
  }
  for (int i = 0; i < 2; i++) {
    struct rt_object *b = &rt_ofd_of((u64)fds[i])->object;
    b->peer = RT->fds[fds[!i]].ofd + 1;
    b->type = type;
    b->messages = kind == OFD_PIPE ? (flags[1] & O_DIRECT) != 0 : type != SOCK_STREAM;
  }
  return 0;
}

i64 sys_pipe(struct call *c) {
  u32 flags = c->nr == __NR_pipe2 ? (u32)c->b : 0;
  i64 r = rt_forward(c);
  if (IS_ERR(r))
    return r;
  u32 ends[2] = {flags & ~(u32)O_DIRECT, flags | 1 /* O_WRONLY */};
  return new_pair(c, OFD_PIPE, (const i32 *)c->a, ends, 0);
}

i64 sys_socketpair(struct call *c) {
  if (c->a != AF_UNIX)
    return rt_refuse(c);
  i64 r = rt_forward(c);
  if (IS_ERR(r))
    return r;
  u32 flags = ((u32)c->b & (O_NONBLOCK | O_CLOEXEC)) | 2 /* O_RDWR */, both[2] = {flags, flags};
  return new_pair(c, OFD_SOCKETPAIR, (const i32 *)c->d, both, (u32)c->b & SOCK_TYPE);
}

i64 sys_eventfd(struct call *c) {
  u32 flags = c->nr == __NR_eventfd2 ? (u32)c->b : 0;
  i64 fd = rt_forward(c);
  if (!IS_ERR(fd))
    fd = rt_new_ofd(c, (u64)fd, OFD_EVENTFD, (flags & (O_NONBLOCK | O_CLOEXEC)) | 2, "");
  if (!IS_ERR(fd))
    rt_ofd_of((u64)fd)->object.type = flags & EFD_SEMAPHORE;
  return fd;
}

i64 sys_signalfd(struct call *c) {
  u64 mask = *(const u64 *)c->b & ~RUNTIME_SIGNALS;
  u32 flags = c->nr == __NR_signalfd4 ? (u32)c->d : 0;
  int fresh = (i32)c->a == -1;
  struct rt_ofd *o = fresh ? 0 : rt_ofd_of(c->a);
  if (!fresh && !o)
    return -E_BADF;
  i64 fd = raw4(__NR_signalfd4, (i32)c->a, &mask, c->c, flags);
  if (!IS_ERR(fd) && fresh)
    fd = rt_new_ofd(c, (u64)fd, OFD_SIGNALFD, flags | 2, "");
  if (!IS_ERR(fd))
    rt_ofd_of((u64)fd)->object.value = mask;
  return fd;
}

/* ---- calls on sockets, as far as a carried pair cannot take them ---- */

static int is_pair(u64 fd) {
  struct rt_ofd *o = rt_ofd_of(fd);
  return o && o->kind == OFD_SOCKETPAIR;
}

i64 sys_shutdown(struct call *c) {
  i64 r = rt_fd_forward(c);
  if (!IS_ERR(r) && is_pair(c->a))
    rt_ofd_of(c->a)->object.shut |= (u32)c->b + 1; /* SHUT_RD 0, SHUT_WR 1, SHUT_RDWR 2 */
  return r;
}

i64 sys_setsockopt(struct call *c) {
  int carried = c->c == SO_SNDBUF || c->c == SO_RCVBUF || c->c == SO_RCVTIMEO || c->c == SO_SNDTIMEO;
  if (is_pair(c->a) && (c->b != SOL_SOCKET || !carried))
    return rt_refuse(c);
  return rt_fd_forward(c);
}

/* Names and connections are those of the host. */
i64 sys_socket_name(struct call *c) {
  return is_pair(c->a) ? rt_refuse(c) : rt_fd_forward(c);
}

struct message {
  u64 name;
  u32 name_bytes, pad;
  u64 iov, iov_count, control, control_bytes;
  u32 flags, pad2;
};

/* Descriptors in a message, addresses and urgent data would be lost on the way. */
i64 sys_send(struct call *c) {
  if (is_pair(c->a)) {
    const struct message *m = (const struct message *)c->b;
    int to = c->nr == __NR_sendto && c->e;
    int lost = c->nr == __NR_sendmsg && (m->control_bytes || m->name_bytes);
    u64 flags = c->nr == __NR_sendto ? c->d : c->c;
    if (to || lost || flags & MSG_OOB)
      return rt_refuse(c);
  }
  return rt_fd_write(c);
}

/* ---- looking at what stands in them: every thread is parked ---- */

static void save_pipe(u32 fd, struct rt_ofd *o) {
  struct rt_object *b = &o->object;
  i64 capacity = raw2(__NR_fcntl, fd, F_GETPIPE_SZ);
  b->value = IS_ERR(capacity) ? 0 : (u64)capacity;
  i32 bytes = 0, scratch[2];
  if (o->flags & O_ACCMODE || raw3(__NR_ioctl, fd, FIONREAD, &bytes) || bytes <= 0)
    return;
  if (b->peer && RT->ofds[b->peer - 1].flags & O_DIRECT)
    b->messages = 1;
  o->blocker = BLOCK_CONTENT;
  if (IS_ERR(raw2(__NR_pipe2, scratch, O_NONBLOCK | O_CLOEXEC)))
    return;
  raw3(__NR_fcntl, scratch[1], F_SETPIPE_SZ, capacity); /* if it stays smaller, tee tells */
  if (raw4(__NR_tee, fd, scratch[1], bytes, 2 /* SPLICE_F_NONBLOCK */) == bytes) {
    u64 head = b->messages ? sizeof(u32) : 0, at = RT->content_used;
    for (;;) {
      u64 room = RT_CONTENT_BYTES - at;
      if (room <= head)
        break;
      i64 n = raw3(__NR_read, scratch[0], RT->content + at + head, room - head);
      if (n <= 0) {
        if (n == -E_AGAIN)
          o->blocker = 0;
        break;
      }
      if (head)
        rt_copy(RT->content + at, &n, head);
      at += head + (u64)n;
    }
    b->content_bytes = (u32)at - RT->content_used;
    RT->content_used = (u32)at;
  }
  raw1(__NR_close, scratch[0]);
  raw1(__NR_close, scratch[1]);
}

static i32 option(u32 fd, u64 name, void *value, u32 bytes) {
  return (i32)raw5(__NR_getsockopt, fd, SOL_SOCKET, name, value, &bytes);
}

static i64 set_option(i64 fd, u64 name, const void *value, u64 bytes) {
  return raw5(__NR_setsockopt, fd, SOL_SOCKET, name, value, bytes);
}

static void save_socket(u32 fd, struct rt_ofd *o) {
  struct rt_object *b = &o->object;
  const i32 from_start = 0, no_offset = -1;
  option(fd, SO_SNDBUF, &b->send_bytes, sizeof b->send_bytes);
  option(fd, SO_RCVBUF, &b->receive_bytes, sizeof b->receive_bytes);
  option(fd, SO_RCVTIMEO, b->receive_timeout, sizeof b->receive_timeout);
  option(fd, SO_SNDTIMEO, b->send_timeout, sizeof b->send_timeout);
  set_option(fd, SO_PEEK_OFF, &from_start, sizeof from_start);
  u64 head = b->messages ? sizeof(u32) : 0, at = RT->content_used;
  u64 flags = MSG_PEEK | MSG_DONTWAIT | (b->messages ? MSG_TRUNC : 0);
  for (;;) {
    u64 room = RT_CONTENT_BYTES - at;
    if (room <= head) {
      o->blocker = BLOCK_CONTENT;
      break;
    }
    i64 n = raw6(__NR_recvfrom, fd, (i64)(RT->content + at + head), (i64)(room - head), (i64)flags, 0, 0);
    if (IS_ERR(n) || (n == 0 && (b->type != SOCK_DGRAM || b->shut & 1)))
      break; /* nothing more, or the end */
    if ((u64)n > room - head) {
      o->blocker = BLOCK_CONTENT;
      break;
    }
    if (head)
      rt_copy(RT->content + at, &n, head);
    at += head + (u64)n;
  }
  set_option(fd, SO_PEEK_OFF, &no_offset, sizeof no_offset);
  b->content_bytes = (u32)at - RT->content_used;
  RT->content_used = (u32)at;
}

static void save_eventfd(u32 fd, struct rt_ofd *o) {
  u64 count = 0, once;
  u32 reads = 0;
  while (rt_readable(fd, 0) && reads < MAX_SEMAPHORE && raw3(__NR_read, fd, &once, 8) == 8) {
    count += once;
    reads++;
    if (!o->object.type)
      break;
  }
  if (count)
    raw3(__NR_write, fd, &count, 8);
  if (reads == MAX_SEMAPHORE)
    o->blocker = BLOCK_CONTENT;
  o->object.value = count;
}

void rt_objects_save_flags(u32 fd, struct rt_ofd *o) {
  i64 flags = raw2(__NR_fcntl, fd, F_GETFL);
  if (!IS_ERR(flags))
    o->flags = (u32)flags & KEPT_FLAGS;
  if (o->blocker == BLOCK_CONTENT)
    o->blocker = 0;
  o->object.content = o->object.content_bytes = 0;
}

void rt_object_save(u32 fd, struct rt_ofd *o) {
  o->object.content = RT->content_used;
  switch (o->kind) {
  case OFD_PIPE: save_pipe(fd, o); break;
  case OFD_SOCKETPAIR: save_socket(fd, o); break;
  case OFD_EVENTFD: save_eventfd(fd, o); break;
  case OFD_TIMERFD: rt_timerfd_save(fd, o); break;
  case OFD_VIEW: rt_view_save(fd, o); break;
  default: break;
  }
}

/* ---- making them anew ---- */

static i64 put(i64 fd, int socket, const u8 *from, u64 bytes) {
  return socket ? raw6(__NR_sendto, fd, (i64)from, (i64)bytes, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0)
                : raw3(__NR_write, fd, from, bytes);
}

/* Put back what stood in the other end of `fd`, which does not block. */
static i64 fill(i64 fd, const struct rt_ofd *o) {
  const struct rt_object *b = &o->object;
  const u8 *at = RT->content + b->content, *end = at + b->content_bytes;
  int socket = o->kind == OFD_SOCKETPAIR;
  while (at < end) {
    u64 bytes = (u64)(end - at);
    if (b->messages) {
      u32 length;
      rt_copy(&length, at, sizeof length);
      at += sizeof length;
      bytes = length;
    }
    i64 n = put(fd, socket, at, bytes);
    if (IS_ERR(n))
      return n;
    if (n == 0 && bytes)
      return -E_INVAL;
    if (b->messages && (u64)n != bytes)
      return -E_INVAL;
    at += n;
  }
  return 0;
}

static i64 raise_both(const i32 *made, i64 *ends) {
  ends[0] = rt_raised(made[0]);
  ends[1] = rt_raised(made[1]);
  if (!IS_ERR(ends[0]) && !IS_ERR(ends[1]))
    return 0;
  for (int i = 0; i < 2; i++)
    if (!IS_ERR(ends[i]))
      raw1(__NR_close, ends[i]);
  return -E_MFILE;
}

/* ends[0] becomes o's end, ends[1] that of its peer, which may be closed (0). */
static i64 restore_pipe(const struct rt_ofd *o, const struct rt_ofd *peer, const i64 *ends) {
  int mine = (o->flags & O_ACCMODE) != 0; /* index of o's end among (reader, writer) */
  const struct rt_ofd *reader = mine ? peer : o;
  i64 write_end = ends[mine ? 0 : 1];
  i64 r = 0;
  if (o->object.value != (u64)raw2(__NR_fcntl, write_end, F_GETPIPE_SZ))
    r = raw3(__NR_fcntl, write_end, F_SETPIPE_SZ, o->object.value);
  if (!IS_ERR(r) && reader && reader->object.messages)
    r = raw3(__NR_fcntl, write_end, F_SETFL, O_NONBLOCK | O_DIRECT);
  if (!IS_ERR(r) && reader)
    r = fill(write_end, reader);
  return r;
}

static i64 set_buffers(i64 fd, const struct rt_ofd *o) {
  const struct rt_object *b = &o->object;
  i32 half;
  i64 r = 0;
  half = b->send_bytes / 2;
  r = set_option(fd, SO_SNDBUF, &half, sizeof half);
  half = b->receive_bytes / 2;
  if (!IS_ERR(r))
    r = set_option(fd, SO_RCVBUF, &half, sizeof half);
  if (!IS_ERR(r))
    r = set_option(fd, SO_RCVTIMEO, b->receive_timeout, sizeof b->receive_timeout);
  if (!IS_ERR(r))
    r = set_option(fd, SO_SNDTIMEO, b->send_timeout, sizeof b->send_timeout);
  if (!IS_ERR(r) && b->shut)
    r = raw2(__NR_shutdown, fd, b->shut - 1);
  return r;
}

static i64 restore_sockets(const struct rt_ofd *o, const struct rt_ofd *peer, const i64 *ends) {
  const i32 large = FILLING_BYTES;
  set_option(ends[0], SO_SNDBUF, &large, sizeof large);
  set_option(ends[1], SO_SNDBUF, &large, sizeof large);
  i64 r = fill(ends[1], o);
  if (!IS_ERR(r) && peer)
    r = fill(ends[0], peer);
  if (!IS_ERR(r))
    r = set_buffers(ends[0], o);
  if (!IS_ERR(r) && peer)
    r = set_buffers(ends[1], peer);
  return r;
}

/* Both ends of a pipe or socket pair; the caller closes both. */
i64 rt_pair_restore(const struct rt_ofd *o, const struct rt_ofd *peer, i64 *ends) {
  i32 made[2];
  int pipe = o->kind == OFD_PIPE, swapped = pipe && (o->flags & O_ACCMODE) != 0;
  i64 r = pipe ? raw2(__NR_pipe2, made, O_NONBLOCK | O_CLOEXEC)
               : raw4(__NR_socketpair, AF_UNIX, o->object.type | O_NONBLOCK | O_CLOEXEC, 0, made);
  if (IS_ERR(r))
    return r;
  i32 ordered[2] = {made[swapped], made[!swapped]};
  r = raise_both(ordered, ends);
  if (IS_ERR(r))
    return r;
  r = pipe ? restore_pipe(o, peer, ends) : restore_sockets(o, peer, ends);
  if (!IS_ERR(r))
    r = raw3(__NR_fcntl, ends[0], F_SETFL, o->flags & (O_NONBLOCK | O_DIRECT));
  if (!IS_ERR(r) && peer)
    r = raw3(__NR_fcntl, ends[1], F_SETFL, peer->flags & (O_NONBLOCK | O_DIRECT));
  if (IS_ERR(r)) {
    raw1(__NR_close, ends[0]);
    raw1(__NR_close, ends[1]);
  }
  return r;
}

/* Any other kind; out of the way of the program's numbers. */
i64 rt_object_restore(const struct rt_ofd *o) {
  const struct rt_object *b = &o->object;
  u64 flags = (o->flags & O_NONBLOCK) | O_CLOEXEC;
  i64 fd;
  switch (o->kind) {
  case OFD_VIEW: return rt_view_restore(o);
  case OFD_EPOLL: return rt_raised(raw1(__NR_epoll_create1, O_CLOEXEC));
  case OFD_TIMERFD: return rt_raised(raw2(__NR_timerfd_create, b->type, flags)); /* armed at the start */
  case OFD_SIGNALFD: return rt_raised(raw4(__NR_signalfd4, -1, &b->value, 8, flags));
  case OFD_EVENTFD:
    fd = rt_raised(raw2(__NR_eventfd2, 0, flags | b->type));
    if (!IS_ERR(fd) && b->value && raw3(__NR_write, fd, &b->value, 8) != 8) {
      raw1(__NR_close, fd);
      return -E_INVAL;
    }
    return fd;
  default: return -E_NOTSUP;
  }
}
