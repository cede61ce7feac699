/* The program's descriptors across a move: noted while it is parked, opened again elsewhere. */
#include "rt.h"

#define SEEK_SET 0
#define SEEK_CUR 1
#define RESOLVE_NO_MAGICLINKS 2
#define RESOLVE_BENEATH 8
#define OPENAT2_FLAGS 037777703 /* all that openat2(2) knows: what it does not know it refuses */
#define OPENAT2_PATH_FLAGS (O_PATH | O_DIRECTORY | 0400000 /* O_NOFOLLOW */)

/* Out of the way of the numbers that are still to be restored. */
i64 rt_raised(i64 fd) {
  if (IS_ERR(fd))
    return fd;
  i64 high = raw3(__NR_fcntl, fd, F_DUPFD_CLOEXEC, RESERVED_FD_FIRST);
  raw1(__NR_close, fd);
  return high;
}

i64 rt_first_fd(u32 ofd) {
  for (u32 fd = 0; fd < RT->fd_high; fd++)
    if (RT->fds[fd].state == FD_OPEN && RT->fds[fd].ofd == ofd)
      return fd;
  return -E_BADF;
}

static int is_object(const struct rt_ofd *o) {
  return o->kind >= OFD_PIPE && o->kind <= OFD_VIEW;
}

void rt_files_save(void) {
  RT->content_used = 0;
  for (u32 fd = 0; fd < RT->fd_high; fd++) {
    struct rt_ofd *o = rt_ofd_of(fd);
    if (!o)
      continue;
    if (is_object(o)) {
      rt_objects_save_flags(fd, o);
    } else if (o->kind != OFD_BLOCKER && o->kind != OFD_OUTPUT && !o->object.value) {
      i64 at = raw3(__NR_lseek, fd, 0, SEEK_CUR);
      o->offset = IS_ERR(at) ? 0 : at;
    }
  }
  u8 seen[RT_MAX_OFDS];
  rt_fill(seen, 0, sizeof seen);
  for (u32 fd = 0; fd < RT->fd_high; fd++) {
    struct rt_ofd *o = rt_ofd_of(fd);
    if (o && is_object(o) && !seen[RT->fds[fd].ofd]++)
      rt_object_save(fd, o);
  }
}

/* Beneath the own directory, whatever links came along with it. */
static i64 open_own(const struct rt_ofd *o) {
  u64 known = o->flags & O_PATH ? OPENAT2_PATH_FLAGS : OPENAT2_FLAGS;
  struct {
    u64 flags, mode, resolve;
  } how = {(o->flags & known) | O_CLOEXEC, 0, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
  return raw4(__NR_openat2, CTL->fd_own_dir, o->path, &how, sizeof how);
}

static i64 reopen(struct rt_ofd *o) {
  i64 fd;
  switch (o->kind) {
  case OFD_STDIN: fd = raw3(__NR_fcntl, CTL->fd_stdin, F_DUPFD_CLOEXEC, RESERVED_FD_FIRST); break;
  case OFD_OUTPUT: return raw3(__NR_fcntl, CTL->fd_output, F_DUPFD_CLOEXEC, RESERVED_FD_FIRST);
  case OFD_OWN: fd = rt_raised(open_own(o)); break;
  case OFD_SHARED:
  case OFD_EXTERNAL:
  case OFD_DEVICE: fd = rt_raised(raw4(__NR_openat, -100, o->path, o->flags | O_CLOEXEC, 0)); break;
  default: return rt_object_restore(o);
  }
  if (!IS_ERR(fd) && o->offset && !o->object.value &&
      raw3(__NR_lseek, fd, o->offset, SEEK_SET) != o->offset) {
    raw1(__NR_close, fd);
    return -E_INVAL;
  }
  return fd;
}

static i64 place(i64 from, i64 fd) {
  return raw3(__NR_dup3, from, fd, RT->fds[fd].cloexec ? O_CLOEXEC : 0);
}

/* Both ends are made together, and go each to the first of its numbers. */
static i64 restore_pair(u32 ofd, i32 *first) {
  struct rt_ofd *o = &RT->ofds[ofd], *peer = o->object.peer ? &RT->ofds[o->object.peer - 1] : 0;
  i64 ends[2];
  i64 r = rt_pair_restore(o, peer, ends);
  if (IS_ERR(r))
    return r;
  first[ofd] = (i32)rt_first_fd(ofd);
  r = place(ends[0], first[ofd]);
  if (!IS_ERR(r) && peer) {
    first[o->object.peer - 1] = (i32)rt_first_fd(o->object.peer - 1);
    r = place(ends[1], first[o->object.peer - 1]);
  }
  raw1(__NR_close, ends[0]);
  raw1(__NR_close, ends[1]);
  return r;
}

static i64 restore_fd(u32 fd, i32 *first) {
  u32 ofd = RT->fds[fd].ofd;
  struct rt_ofd *o = &RT->ofds[ofd];
  if (first[ofd] < 0 && (o->kind == OFD_PIPE || o->kind == OFD_SOCKETPAIR)) {
    i64 r = restore_pair(ofd, first);
    if (IS_ERR(r))
      return r;
  }
  if (first[ofd] >= 0)
    return first[ofd] == (i32)fd ? 0 : place(first[ofd], fd);
  i64 opened = reopen(o);
  if (opened == -E_INVAL && o->flags & O_DIRECT) { /* no such thing here: it is a wish for speed */
    o->flags &= ~(u32)O_DIRECT;
    opened = reopen(o);
  }
  if (IS_ERR(opened))
    return opened;
  rt_ofd_look_at(o, (u64)opened);
  first[ofd] = (i32)fd;
  i64 r = place(opened, fd);
  raw1(__NR_close, opened);
  return r;
}

static const char *name_of(const struct rt_ofd *o) {
  static const char *const names[] = {[OFD_PIPE] = "a pipe",
                                      [OFD_SOCKETPAIR] = "a socket pair",
                                      [OFD_EVENTFD] = "an eventfd",
                                      [OFD_EPOLL] = "an epoll instance",
                                      [OFD_TIMERFD] = "a timerfd",
                                      [OFD_SIGNALFD] = "a signalfd",
                                      [OFD_VIEW] = "a snapshot of /proc or /sys"};
  return is_object(o) ? names[o->kind] : o->path;
}

static void describe(char *why, u64 n, const char *text, const char *path) {
  u64 k = 0;
  for (; *text && k + 1 < n; text++)
    why[k++] = *text;
  for (; *path && k + 1 < n; path++)
    why[k++] = *path;
  why[k] = 0;
}

int rt_files_restore(char *why, u64 why_bytes) {
  rt_writings_restore();
  i32 first[RT_MAX_OFDS];
  for (u32 i = 0; i < RT_MAX_OFDS; i++)
    first[i] = -1;
  for (u32 fd = 0; fd < RESERVED_FD_FIRST; fd++) {
    if (RT->fds[fd].state != FD_OPEN)
      continue;
    i64 r = restore_fd(fd, first);
    if (IS_ERR(r)) {
      const struct rt_ofd *o = &RT->ofds[RT->fds[fd].ofd];
      const char *text = is_object(o) ? "an object of the program could not be made again: "
                                      : "a file of the program could not be opened again: ";
      describe(why, why_bytes, text, name_of(o));
      return (int)r;
    }
  }
  i64 r = rt_watches_restore();
  if (IS_ERR(r))
    describe(why, why_bytes, "a registration of an epoll instance could not be made again", "");
  return (int)r;
}
