/* Descriptors: a table in the arena says what each one is, so that the next host can open it again.
 *
 * The program's descriptor numbers are the kernel's own, so most calls are forwarded as they are;
 * numbers at and above RESERVED_FD_FIRST belong to the runtime and do not exist for the program.
 * `fds` maps a number to an open file description (`ofds`): duplicates share one, as in the kernel. */
#include "rt.h"

#define F_DUPFD 0
#define F_SETFD 2
#define F_SETFL 4
#define F_SETLK 6
#define F_SETLKW 7
#define F_OFD_SETLK 37
#define F_OFD_SETLKW 38
#define CHANGEABLE_FLAGS (O_APPEND | O_NONBLOCK | O_DIRECT)

int rt_fd_ok(u64 fd) {
  return fd < RESERVED_FD_FIRST && RT->fds[fd].state == FD_OPEN;
}

struct rt_ofd *rt_ofd_of(u64 fd) {
  return rt_fd_ok(fd) ? &RT->ofds[RT->fds[fd].ofd] : 0;
}

static void set_path(struct rt_ofd *o, const char *text) {
  u64 n = rt_strlen(text);
  if (n >= RT_PATH_BYTES)
    n = RT_PATH_BYTES - 1;
  rt_copy(o->path, text, n);
  o->path[n] = 0;
}

static void bind_fd(u64 fd, u32 ofd, u32 cloexec) {
  RT->fds[fd].state = FD_OPEN;
  RT->fds[fd].ofd = ofd;
  RT->fds[fd].cloexec = cloexec;
  if (fd >= RT->fd_high)
    RT->fd_high = (u32)fd + 1;
  if (ofd >= RT->ofd_high)
    RT->ofd_high = ofd + 1;
  RT->ofds[ofd].refs++;
}

void rt_ofd_look_at(struct rt_ofd *o, u64 fd) {
  o->pins = o->kind < OFD_BLOCKER && rt_pins(fd, o->flags);
  o->inode = o->kind < OFD_DEVICE ? rt_file_inode(fd, o->flags) : 0;
}

i64 rt_new_ofd(struct call *c, u64 fd, u32 kind, u32 flags, const char *path) {
  if (fd >= RESERVED_FD_FIRST) {
    raw1(__NR_close, fd);
    return -E_MFILE;
  }
  for (u32 i = 0; i < RT_MAX_OFDS; i++) {
    struct rt_ofd *o = &RT->ofds[i];
    if (o->refs)
      continue;
    o->kind = kind;
    o->flags = flags & ~(u32)(O_CREAT | O_EXCL | O_TRUNC | O_CLOEXEC);
    o->blocker = 0;
    rt_ofd_look_at(o, fd);
    o->offset = 0;
    set_path(o, path);
    rt_fill(&o->object, 0, sizeof o->object);
    if (kind >= OFD_BLOCKER)
      rt_note_place(c, &o->made);
    bind_fd(fd, i, (flags & O_CLOEXEC) != 0);
    return (i64)fd;
  }
  raw1(__NR_close, fd);
  return -E_MFILE;
}

static void unbind_fd(u64 fd) {
  struct rt_fd *f = &RT->fds[fd];
  struct rt_ofd *o = &RT->ofds[f->ofd];
  f->state = FD_FREE;
  if (--o->refs)
    return;
  rt_watches_forget(f->ofd);
  rt_listing_drop(o);
  rt_remove_hidden(o);
  if ((o->kind == OFD_PIPE || o->kind == OFD_SOCKETPAIR) && o->object.peer)
    RT->ofds[o->object.peer - 1].object.peer = 0;
}

void rt_files_init(void) {
  raw3(__NR_dup3, CTL->fd_stdin, 0, 0);
  raw3(__NR_dup3, CTL->fd_output, 1, 0);
  raw3(__NR_dup3, CTL->fd_output, 2, 0);
  rt_new_ofd(0, 0, OFD_STDIN, 0, "stdin");
  rt_new_ofd(0, 1, OFD_OUTPUT, 1 | O_APPEND, "output");
  bind_fd(2, RT->fds[1].ofd, 0);
}

/* ---- open and close ---- */

static i64 open_path(struct call *c, int dirfd, const char *path, u64 flags, u64 mode) {
  struct rt_path p;
  i64 r = rt_resolve(dirfd, path, &p);
  if (IS_ERR(r))
    return r;
  i64 view;
  if (p.kind == OFD_EXTERNAL && rt_view_open(p.text, flags, &view))
    return IS_ERR(view) ? view : rt_new_ofd(c, (u64)view, OFD_VIEW, (u32)flags & O_CLOEXEC, p.text);
  int writes = (flags & O_ACCMODE) != 0 || (flags & (O_CREAT | O_TRUNC)) != 0;
  i64 fd = raw4(__NR_openat, p.dirfd, p.at, flags, mode);
  if (IS_ERR(fd))
    return fd;
  fd = rt_new_ofd(c, (u64)fd, p.kind, (u32)flags, p.text);
  if (IS_ERR(fd))
    return fd;
  struct rt_ofd *o = rt_ofd_of((u64)fd);
  if ((flags & O_TMPFILE) == O_TMPFILE)
    o->blocker = BLOCK_UNLINKED;
  if (writes && p.kind == OFD_EXTERNAL) {
    o->blocker = BLOCK_OUTSIDE;
    rt_note_outside_write(&p);
  }
  return fd;
}

i64 sys_open(struct call *c) {
  return open_path(c, -100, (const char *)c->a, c->b, c->c);
}

i64 sys_openat(struct call *c) {
  return open_path(c, (int)c->a, (const char *)c->b, c->c, c->d);
}

i64 sys_creat(struct call *c) {
  return open_path(c, -100, (const char *)c->a, 1 | O_CREAT | O_TRUNC, c->b);
}

i64 sys_close(struct call *c) {
  if (!rt_fd_ok(c->a))
    return -E_BADF;
  unbind_fd(c->a);
  return raw1(__NR_close, c->a);
}

i64 sys_close_range(struct call *c) {
  u64 last = c->b < RESERVED_FD_FIRST ? c->b : RESERVED_FD_FIRST - 1;
  if (c->c & ~4ul)
    return rt_refuse(c);
  for (u64 fd = c->a; fd <= last; fd++)
    if (rt_fd_ok(fd)) {
      if (c->c & 4) {
        RT->fds[fd].cloexec = 1;
      } else {
        unbind_fd(fd);
        raw1(__NR_close, fd);
      }
    }
  return 0;
}

static i64 dup_to(u64 fd, u64 to, u32 cloexec) {
  if (!rt_fd_ok(fd) || to >= RESERVED_FD_FIRST)
    return -E_BADF;
  i64 r = raw3(__NR_dup3, fd, to, cloexec ? O_CLOEXEC : 0);
  if (IS_ERR(r))
    return r;
  u32 ofd = RT->fds[fd].ofd;
  if (rt_fd_ok(to))
    unbind_fd(to);
  bind_fd(to, ofd, cloexec);
  return r;
}

static i64 dup_above(u64 fd, u64 lowest, u32 cloexec) {
  if (!rt_fd_ok(fd))
    return -E_BADF;
  i64 r = raw3(__NR_fcntl, fd, cloexec ? F_DUPFD_CLOEXEC : F_DUPFD, lowest);
  if (IS_ERR(r))
    return r;
  if (r >= RESERVED_FD_FIRST) {
    raw1(__NR_close, r);
    return -E_MFILE;
  }
  bind_fd((u64)r, RT->fds[fd].ofd, cloexec);
  return r;
}

i64 sys_dup(struct call *c) {
  return dup_above(c->a, 0, 0);
}

i64 sys_dup2(struct call *c) {
  if (c->a == c->b)
    return rt_fd_ok(c->a) ? (i64)c->a : -E_BADF;
  return dup_to(c->a, c->b, 0);
}

i64 sys_dup3(struct call *c) {
  if (c->a == c->b || c->c & ~(u64)O_CLOEXEC)
    return -E_INVAL;
  return dup_to(c->a, c->b, c->c != 0);
}

/* ---- what changes a description ---- */

i64 sys_fcntl(struct call *c) {
  struct rt_ofd *o = rt_ofd_of(c->a);
  if (!o)
    return -E_BADF;
  if (c->b == F_DUPFD || c->b == F_DUPFD_CLOEXEC)
    return dup_above(c->a, c->c, c->b == F_DUPFD_CLOEXEC);
  if (c->b == F_SETFL && o->kind < OFD_BLOCKER && !o->pins)
    c->c &= ~(u64)O_DIRECT; /* another thread may be about to read, untrapped */
  i64 r = c->b == F_SETLKW || c->b == F_OFD_SETLKW ? rt_wait_in(c) : rt_forward(c);
  if (IS_ERR(r))
    return r;
  if (c->b == F_SETFD)
    RT->fds[c->a].cloexec = c->c & 1;
  if (c->b == F_SETFL)
    o->flags = (o->flags & ~(u32)CHANGEABLE_FLAGS) | ((u32)c->c & CHANGEABLE_FLAGS);
  if ((c->b == F_SETLK || c->b == F_SETLKW || c->b == F_OFD_SETLK || c->b == F_OFD_SETLKW) &&
      o->kind == OFD_SHARED)
    o->blocker = *(u16 *)c->c == 2 /* F_UNLCK */ ? 0 : BLOCK_LOCKED;
  return r;
}

i64 sys_flock(struct call *c) {
  struct rt_ofd *o = rt_ofd_of(c->a);
  if (!o)
    return -E_BADF;
  i64 r = rt_wait_in(c);
  if (!IS_ERR(r) && o->kind == OFD_SHARED)
    o->blocker = c->b & 8 /* LOCK_UN */ ? 0 : BLOCK_LOCKED;
  return r;
}

/* ---- descriptors that are not carried yet ---- */

static const char *blocker_name(u64 nr) {
  switch (nr) {
  case __NR_socket:
  case __NR_accept:
  case __NR_accept4: return "socket";
  case __NR_timerfd_create: return "timerfd of an alarm clock";
  case __NR_memfd_create: return "memfd";
  case __NR_pidfd_open: return "pidfd";
  default: return "inotify";
  }
}

i64 rt_fd_new_blocker(struct call *c) {
  int waits = c->nr == __NR_accept || c->nr == __NR_accept4;
  i64 fd = waits ? rt_fd_forward(c) : rt_forward(c);
  if (IS_ERR(fd))
    return fd;
  if (waits)
    rt_lock(); /* the others hold it already */
  fd = rt_new_ofd(c, (u64)fd, OFD_BLOCKER, 2, blocker_name(c->nr));
  if (waits)
    rt_unlock();
  return fd;
}

/* ---- names that change below an open file ---- */

void rt_ofds_check_unlinked(void) {
  u64 st[18]; /* struct stat; st_nlink is its third word */
  for (u32 fd = 0; fd < RT->fd_high; fd++) {
    struct rt_ofd *o = rt_ofd_of(fd);
    if (o && (o->kind == OFD_OWN || o->kind == OFD_SHARED) && !IS_ERR(raw2(__NR_fstat, fd, st)) && st[2] == 0)
      o->blocker = BLOCK_UNLINKED;
  }
}

void rt_ofds_renamed(const struct rt_path *from, const struct rt_path *to) {
  u64 n = rt_strlen(from->text), m = rt_strlen(to->text);
  for (u32 i = 0; i < RT->ofd_high; i++) {
    struct rt_ofd *o = &RT->ofds[i];
    if (!o->refs || o->kind != from->kind)
      continue;
    u64 k = 0;
    while (k < n && o->path[k] == from->text[k])
      k++;
    u64 rest = rt_strlen(o->path);
    if (k < n || (o->path[n] && o->path[n] != '/') || m + rest - n >= RT_PATH_BYTES)
      continue;
    char path[RT_PATH_BYTES];
    rt_copy(path, to->text, m);
    rt_copy(path + m, o->path + n, rest - n + 1);
    set_path(o, path);
    o->kind = to->kind;
    if (to->kind == OFD_EXTERNAL && (o->flags & O_ACCMODE))
      o->blocker = BLOCK_OUTSIDE;
  }
}
