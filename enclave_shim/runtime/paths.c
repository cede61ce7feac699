/* Paths: which of them belong to the enclave, and every call that takes one.
 *
 * The enclave sees its own directory under the same virtual path on every host, whatever folder of
 * the host it stands in; the working directory is virtual as well. Paths are normalised by their
 * text, so `a/../b` is `b` even where `a` is a symbolic link. */
#include "rt.h"

#define AT_FDCWD_ -100
#define AT_SYMLINK_NOFOLLOW 0x100
#define AT_REMOVEDIR 0x200
#define O_WRONLY 1

static int is_below(const char *path, const char *root) {
  u64 n = rt_strlen(root);
  if (n == 1 && root[0] == '/')
    return 1;
  for (u64 i = 0; i < n; i++)
    if (path[i] != root[i])
      return 0;
  return path[n] == 0 || path[n] == '/';
}

/* Append the components of `from` to the absolute path in `to`, resolving `.` and `..`. */
static i64 append_normalised(char *to, u64 *length, const char *from) {
  u64 n = *length;
  while (*from) {
    while (*from == '/')
      from++;
    u64 k = 0;
    while (from[k] && from[k] != '/')
      k++;
    if (k == 0)
      break;
    if (k == 1 && from[0] == '.') {
    } else if (k == 2 && from[0] == '.' && from[1] == '.') {
      while (n > 0 && to[n - 1] != '/')
        n--;
      if (n > 0)
        n--;
    } else {
      if (n + k + 2 > RT_PATH_BYTES)
        return -E_NAMETOOLONG;
      to[n++] = '/';
      rt_copy(to + n, from, k);
      n += k;
    }
    from += k;
  }
  to[n] = 0;
  *length = n;
  return 0;
}

static int is_device(const char *p) {
  static const char *const known[] = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"};
  for (u64 i = 0; i < ARRAY_LEN(known); i++)
    if (rt_streq(p, known[i]))
      return 1;
  return 0;
}

static i64 base_of(int dirfd, char *to, u64 *length) {
  if (dirfd == AT_FDCWD_)
    return append_normalised(to, length, RT->cwd);
  struct rt_ofd *o = rt_ofd_of((u64)dirfd);
  if (!o)
    return -E_BADF;
  if (o->kind == OFD_OWN) {
    i64 r = append_normalised(to, length, RT->own_dir);
    return IS_ERR(r) ? r : append_normalised(to, length, o->path);
  }
  return append_normalised(to, length, o->path);
}

i64 rt_resolve(int dirfd, const char *path, struct rt_path *out) {
  u64 n = 0;
  if ((u64)path < PAGE_BYTES)
    return -E_FAULT;
  if (!*path)
    return -E_NOENT;
  if (*path != '/') {
    i64 r = base_of(dirfd, out->text, &n);
    if (IS_ERR(r))
      return r;
  }
  i64 r = append_normalised(out->text, &n, path);
  if (IS_ERR(r))
    return r;
  if (n == 0) {
    out->text[n++] = '/';
    out->text[n] = 0;
  }
  out->dirfd = AT_FDCWD_;
  out->at = out->text;
  if (is_below(out->text, RT->own_dir)) {
    u64 skip = rt_strlen(RT->own_dir);
    while (out->text[skip] == '/')
      skip++;
    u64 rest = rt_strlen(out->text + skip);
    for (u64 i = 0; i <= rest; i++)
      out->text[i] = out->text[skip + i];
    if (rest == 0) {
      out->text[0] = '.';
      out->text[1] = 0;
    }
    out->kind = OFD_OWN;
    out->dirfd = CTL->fd_own_dir;
    return 0;
  }
  out->kind = is_device(out->text) ? OFD_DEVICE : OFD_EXTERNAL;
  for (u32 i = 0; i < RT->shared_count && out->kind == OFD_EXTERNAL; i++)
    if (is_below(out->text, RT->shared_text + RT->shared_off[i]))
      out->kind = OFD_SHARED;
  return 0;
}

/* Files that the enclave made elsewhere would be missing on the next host. */
void rt_note_outside_write(const struct rt_path *p) {
  if (p->kind != OFD_EXTERNAL)
    return;
  if (RT->outside_writes++ == 0) {
    u64 n = rt_strlen(p->text);
    if (n >= sizeof RT->outside_path)
      n = sizeof RT->outside_path - 1;
    rt_copy(RT->outside_path, p->text, n);
    RT->outside_path[n] = 0;
  }
}

i64 sys_getcwd(struct call *c) {
  u64 n = rt_strlen(RT->cwd) + 1;
  if (n > c->b)
    return -E_RANGE;
  rt_copy((void *)c->a, RT->cwd, n);
  return (i64)n;
}

static i64 set_cwd(const struct rt_path *p) {
  i64 fd = raw4(__NR_openat, p->dirfd, p->at, 0200000 | O_CLOEXEC /* O_DIRECTORY */, 0);
  if (IS_ERR(fd))
    return fd;
  raw1(__NR_close, fd);
  char full[RT_PATH_BYTES];
  u64 n = 0;
  if (p->kind == OFD_OWN)
    append_normalised(full, &n, RT->own_dir);
  i64 r = append_normalised(full, &n, p->text);
  if (IS_ERR(r))
    return r;
  if (n == 0) {
    full[n++] = '/';
    full[n] = 0;
  }
  rt_copy(RT->cwd, full, n + 1);
  return 0;
}

i64 sys_chdir(struct call *c) {
  struct rt_path p;
  i64 r = rt_resolve(AT_FDCWD_, (const char *)c->a, &p);
  return IS_ERR(r) ? r : set_cwd(&p);
}

i64 sys_fchdir(struct call *c) {
  struct rt_path p;
  i64 r = rt_resolve((int)c->a, ".", &p);
  return IS_ERR(r) ? r : set_cwd(&p);
}

/* Old calls are turned into their `…at` forms; then one place knows what each does with its paths. */
static void to_at_form(struct call *c) {
  u64 a = c->a, b = c->b, d = c->c;
  const u64 here = (u64)AT_FDCWD_;
#define AT(number, w, x, y, z)                                                                               \
  do {                                                                                                       \
    c->nr = __NR_##number;                                                                                   \
    c->a = (u64)(w);                                                                                         \
    c->b = (u64)(x);                                                                                         \
    c->c = (u64)(y);                                                                                         \
    c->d = (u64)(z);                                                                                         \
    c->e = 0;                                                                                                \
  } while (0)
  switch (c->nr) {
  case __NR_stat: AT(newfstatat, here, a, b, 0); break;
  case __NR_lstat: AT(newfstatat, here, a, b, AT_SYMLINK_NOFOLLOW); break;
  case __NR_access: AT(faccessat, here, a, b, 0); break;
  case __NR_chmod: AT(fchmodat, here, a, b, 0); break;
  case __NR_chown: AT(fchownat, here, a, b, d); break;
  case __NR_lchown:
    AT(fchownat, here, a, b, d);
    c->e = AT_SYMLINK_NOFOLLOW;
    break;
  case __NR_mkdir: AT(mkdirat, here, a, b, 0); break;
  case __NR_rmdir: AT(unlinkat, here, a, AT_REMOVEDIR, 0); break;
  case __NR_unlink: AT(unlinkat, here, a, 0, 0); break;
  case __NR_readlink: AT(readlinkat, here, a, b, d); break;
  case __NR_rename: AT(renameat2, here, a, here, b); break;
  case __NR_renameat: AT(renameat2, a, b, c->c, c->d); break;
  case __NR_link: AT(linkat, here, a, here, b); break;
  case __NR_symlink: AT(symlinkat, a, here, b, 0); break;
  default: break;
  }
#undef AT
}

static i64 two_paths(struct call *c) {
  struct rt_path from, to;
  i64 r = rt_resolve((int)c->a, (const char *)c->b, &from);
  if (!IS_ERR(r))
    r = rt_resolve((int)c->c, (const char *)c->d, &to);
  if (IS_ERR(r))
    return r;
  r = raw5(c->nr, from.dirfd, from.at, to.dirfd, to.at, c->e);
  if (IS_ERR(r))
    return r;
  rt_note_outside_write(&from);
  rt_note_outside_write(&to);
  if (c->nr == __NR_renameat2) {
    rt_ofds_renamed(&from, &to);
    rt_ofds_check_unlinked();
  }
  return r;
}

static i64 path_and_fd(struct call *c, struct rt_path *p, u64 flags) {
  i64 fd = raw4(__NR_openat, p->dirfd, p->at, flags | O_CLOEXEC, 0);
  if (IS_ERR(fd))
    return fd;
  i64 r = c->nr == __NR_statfs ? raw2(__NR_fstatfs, fd, c->b) : rt_truncate_fd(c->self, (u64)fd, c->b);
  raw1(__NR_close, fd);
  return r;
}

i64 rt_path_call(struct call *c) {
  struct rt_path p;
  i64 r;
  to_at_form(c);
  switch (c->nr) {
  case __NR_renameat2:
  case __NR_linkat: return two_paths(c);
  case __NR_symlinkat:
    r = rt_resolve((int)c->b, (const char *)c->c, &p);
    if (!IS_ERR(r))
      r = raw3(__NR_symlinkat, c->a, p.dirfd, p.at);
    if (!IS_ERR(r))
      rt_note_outside_write(&p);
    return r;
  case __NR_truncate:
  case __NR_statfs:
    r = rt_resolve(AT_FDCWD_, (const char *)c->a, &p);
    if (IS_ERR(r))
      return r;
    if (c->nr == __NR_statfs)
      return path_and_fd(c, &p, 0);
    rt_note_outside_write(&p);
    return path_and_fd(c, &p, O_WRONLY);
  default: break;
  }
  /* (dirfd, path, …); an empty or missing path means the descriptor itself */
  const char *path = (const char *)c->b;
  int on_fd = c->nr == __NR_utimensat && !path;
  if (path && !*path && (c->nr == __NR_newfstatat || c->nr == __NR_statx || c->nr == __NR_fchownat))
    on_fd = 1;
  if (on_fd) {
    if (!rt_fd_ok(c->a))
      return -E_BADF;
    return rt_forward(c);
  }
  r = rt_resolve((int)c->a, path, &p);
  if (IS_ERR(r))
    return r;
  if (c->nr == __NR_readlinkat && p.kind == OFD_EXTERNAL && c->d) {
    r = rt_view_link(p.text, (char *)c->c, c->d);
    if (r)
      return r;
  }
  if (c->nr == __NR_unlinkat && !(c->c & AT_REMOVEDIR) && rt_hide_removed(&p))
    return 0;
  c->a = (u64)p.dirfd;
  c->b = (u64)p.at;
  r = rt_forward(c);
  if (IS_ERR(r))
    return r;
  if (c->nr == __NR_unlinkat || c->nr == __NR_mkdirat || c->nr == __NR_fchmodat || c->nr == __NR_fchownat ||
      c->nr == __NR_utimensat)
    rt_note_outside_write(&p);
  if (c->nr == __NR_unlinkat)
    rt_ofds_check_unlinked();
  return r;
}
