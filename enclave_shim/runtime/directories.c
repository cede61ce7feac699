/* Listing a directory: read as a whole when the program begins, kept in the arena, and handed out from
 * there. So a program can be in the middle of it when it moves: the kernel's own position in a directory
 * means nothing on another file system. What is added or removed meanwhile is seen or not, as POSIX says.
 *
 * A file of the own directory that is removed while it is open keeps a hidden name there until it is
 * closed, so that it travels with the directory; listings do not show such names. */
#include "rt.h"

#define FIRST_BYTES (64ul << 10)
#define MOST_BYTES (64ul << 20)
#define AT_REMOVEDIR 0x200
#define RENAME_NOREPLACE 1

struct entry {
  u64 inode;
  i64 next; /* cookie: here, the offset of the entry after it */
  u16 bytes;
  u8 type;
  char name[];
};

static const char hidden[] = ".optmig-removed-";

static int is_hidden(const char *name) {
  u64 i = 0;
  while (i < sizeof hidden - 1 && name[i] == hidden[i])
    i++;
  return i == sizeof hidden - 1;
}

void rt_listing_drop(struct rt_ofd *o) {
  if (o->object.value && o->kind < OFD_BLOCKER)
    rt_memory_give(o->object.value, o->object.content_bytes);
  o->object.value = 0;
  o->object.content_bytes = 0;
}

/* Leave out hidden names, and number the entries by their place. */
static u64 tidy(u64 base, u64 bytes) {
  u64 to = 0;
  for (u64 from = 0; from < bytes;) {
    struct entry *e = (struct entry *)(base + from);
    u64 n = e->bytes;
    from += n;
    if (is_hidden(e->name))
      continue;
    rt_copy((void *)(base + to), e, n); /* downwards */
    to += n;
    ((struct entry *)(base + to - n))->next = (i64)to;
  }
  return to;
}

static i64 read_listing(u64 fd, struct rt_ofd *o) {
  raw3(__NR_lseek, fd, 0, 0);
  for (u64 room = FIRST_BYTES; room <= MOST_BYTES; room *= 4) {
    u64 base = rt_memory_take(room, 3 /* PROT_READ | PROT_WRITE */, 0), used = 0;
    if (!base)
      return -E_NOMEM;
    i64 n = 0;
    while (room - used > PAGE_BYTES && (n = raw3(__NR_getdents64, fd, base + used, room - used)) > 0)
      used += (u64)n;
    if (n == 0) {
      o->object.value = base;
      o->object.content_bytes = (u32)room;
      o->object.due_ns = (i64)tidy(base, used); /* where it ends */
      rt_mark(base, used);
      o->offset = 0;
      return 0;
    }
    rt_memory_give(base, room);
    raw3(__NR_lseek, fd, 0, 0);
    if (IS_ERR(n))
      return n;
  }
  return -E_NOMEM;
}

i64 sys_getdents64(struct call *c) {
  struct rt_ofd *o = rt_ofd_of(c->a);
  if (!o)
    return -E_BADF;
  if (o->kind >= OFD_BLOCKER)
    return rt_forward(c);
  if (!o->object.value) {
    i64 r = read_listing(c->a, o);
    if (IS_ERR(r))
      return r;
  }
  u64 done = 0;
  while (o->offset < o->object.due_ns) {
    const struct entry *e = (const struct entry *)(o->object.value + (u64)o->offset);
    if (e->bytes > c->c - done)
      return done ? (i64)done : -E_INVAL;
    rt_copy((void *)(c->b + done), e, e->bytes);
    done += e->bytes;
    o->offset += e->bytes;
  }
  return (i64)done;
}

i64 sys_lseek(struct call *c) {
  struct rt_ofd *o = rt_ofd_of(c->a);
  if (!o)
    return -E_BADF;
  if (o->kind >= OFD_BLOCKER || !o->object.value)
    return rt_forward(c);
  if (c->c == 1 && c->b == 0)
    return o->offset;
  if (c->c != 0)
    return -E_INVAL;
  if (c->b == 0) { /* rewinddir: what is there now */
    rt_listing_drop(o);
    o->offset = 0;
    return rt_forward(c);
  }
  for (i64 at = 0; at <= o->object.due_ns; at += ((const struct entry *)(o->object.value + (u64)at))->bytes) {
    if (at == (i64)c->b)
      return o->offset = at;
    if (at == o->object.due_ns)
      break;
  }
  return -E_INVAL;
}

/* ---- files that are removed while they are open ---- */

static void hidden_name(char *name, u32 number) {
  u64 n = sizeof hidden - 1;
  rt_copy(name, hidden, n);
  for (int shift = 28; shift >= 0; shift -= 4)
    name[n++] = "0123456789abcdef"[number >> shift & 15];
  name[n] = 0;
}

/* Hide a file that somebody has open, instead of removing it; 0 if nobody has. */
int rt_hide_removed(const struct rt_path *p) {
  char name[sizeof hidden + 8];
  u64 st[18]; /* struct stat: st_nlink is its third word */
  int found = 0;
  if (p->kind != OFD_OWN || raw4(__NR_newfstatat, p->dirfd, p->at, st, 0x100 /* AT_SYMLINK_NOFOLLOW */) ||
      st[2] != 1)
    return 0;
  for (u32 i = 0; i < RT->ofd_high; i++) {
    struct rt_ofd *o = &RT->ofds[i];
    if (!o->refs || o->kind != OFD_OWN || !rt_streq(o->path, p->text) || o->flags & O_DIRECTORY)
      continue;
    if (!found) {
      i64 r;
      do {
        hidden_name(name, ++RT->hidden_count);
        r = raw5(__NR_renameat2, p->dirfd, p->at, CTL->fd_own_dir, name, RENAME_NOREPLACE);
      } while (r == -E_EXIST);
      if (IS_ERR(r))
        return 0;
      found = 1;
    }
    rt_copy(o->path, name, sizeof name);
  }
  return found;
}

/* The last descriptor of a hidden file is closed, or the program ends: now it is removed. */
void rt_remove_hidden(const struct rt_ofd *closed) {
  if (closed->kind != OFD_OWN || !is_hidden(closed->path))
    return;
  for (u32 i = 0; i < RT->ofd_high; i++) {
    const struct rt_ofd *o = &RT->ofds[i];
    if (o != closed && o->refs && o->kind == OFD_OWN && rt_streq(o->path, closed->path))
      return;
  }
  raw3(__NR_unlinkat, CTL->fd_own_dir, closed->path, 0);
}

void rt_remove_all_hidden(void) {
  for (u32 i = 0; i < RT->ofd_high; i++)
    if (RT->ofds[i].refs && RT->ofds[i].kind == OFD_OWN && is_hidden(RT->ofds[i].path))
      raw3(__NR_unlinkat, CTL->fd_own_dir, RT->ofds[i].path, 0);
}
