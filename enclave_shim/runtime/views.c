/* What the program reads below /proc and /sys: as it was at that moment, in a memory file.
 *
 * Such files have no content of their own that another host could be compared with, and libraries read
 * them all the time (processors, memory, mappings). So opening one takes a snapshot, which travels. Those
 * that tell of the process itself tell of the enclave: it is process 2, its memory is the arena, its
 * arguments are what it was launched with. */
#include "rt.h"

#define MOST_BYTES (1ul << 20) /* a larger file is opened as any other */
#define NO_VIEW (-4096l)       /* neither a descriptor nor an error */

static int begins(const char *text, const char *with) {
  while (*with)
    if (*text++ != *with++)
      return 0;
  return 1;
}

/* The part of a path below /proc that is about the process itself, or 0. */
static const char *about_self(const char *path) {
  static const char *const selves[] = {"/proc/self/", "/proc/2/", "/proc/thread-self/"};
  for (u64 i = 0; i < ARRAY_LEN(selves); i++)
    if (begins(path, selves[i]))
      return path + rt_strlen(selves[i]);
  return 0;
}

static void put_text(i64 fd, const char *text) {
  raw3(__NR_write, fd, text, rt_strlen(text));
}

static void put_hex(i64 fd, u64 value) {
  char text[17];
  u64 n = 0, digits = 8;
  while (digits < 16 && value >> (4 * digits))
    digits++;
  while (digits-- > 0)
    text[n++] = "0123456789abcdef"[value >> (4 * digits) & 15];
  raw3(__NR_write, fd, text, n);
}

static void put_mapping(i64 fd, u64 start, u64 end, u32 prot, const char *name) {
  char rights[] = " rwxp 00000000 00:00 0 ";
  if (!(prot & 1))
    rights[1] = '-';
  if (!(prot & 2))
    rights[2] = '-';
  if (!(prot & 4))
    rights[3] = '-';
  put_hex(fd, start);
  put_text(fd, "-");
  put_hex(fd, end);
  put_text(fd, rights);
  put_text(fd, name);
  put_text(fd, "\n");
}

static void put_maps(i64 fd) {
  extern char __executable_start[], etext[];
  static const char *const names[] = {"", "[stack]", "[heap]", "", "[image data]"};
  put_mapping(fd, PAGE_DOWN((u64)__executable_start), PAGE_UP((u64)etext), 5, RT->exec_name);
  for (u32 i = 0; i < RT->vma_count; i++) {
    const struct rt_vma *v = &RT->vmas[i];
    put_mapping(fd, v->start, v->end, v->prot, v->kind < ARRAY_LEN(names) ? names[v->kind] : "");
  }
}

/* argv or the environment: texts one after the other, as the program's first stack has them. */
static u64 *put_strings(i64 fd, u64 *vector) {
  for (; *vector; vector++)
    raw3(__NR_write, fd, *vector, rt_strlen((const char *)*vector) + 1);
  return vector + 1;
}

static int put_own(i64 fd, const char *name) {
  u64 *argv = (u64 *)RT->first_stack + 1, *env = argv + *(u64 *)RT->first_stack + 1, *auxv = env;
  while (*auxv++)
    ;
  if (rt_streq(name, "cmdline")) {
    put_strings(fd, argv);
  } else if (rt_streq(name, "environ")) {
    put_strings(fd, env);
  } else if (rt_streq(name, "auxv")) {
    u64 words = 2;
    for (u64 *a = auxv; a[0]; a += 2)
      words += 2;
    raw3(__NR_write, fd, auxv, words * sizeof *auxv);
  } else if (rt_streq(name, "maps")) {
    put_maps(fd);
  } else {
    return 0;
  }
  return 1;
}

/* Copy a file of the kernel's; 0 if it is too large or cannot be read. */
static int put_copy(i64 fd, i64 from) {
  char block[PAGE_BYTES];
  for (u64 done = 0; done <= MOST_BYTES;) {
    i64 n = raw3(__NR_read, from, block, sizeof block);
    if (n <= 0)
      return n == 0;
    raw3(__NR_write, fd, block, n);
    done += (u64)n;
  }
  return 0;
}

static i64 memory_file(void) {
  return raw2(__NR_memfd_create, "optmig-view", 1 /* MFD_CLOEXEC */);
}

static i64 open_view(const char *path, u64 flags) {
  const char *own = about_self(path);
  if (flags & (O_ACCMODE | O_CREAT | O_TRUNC))
    return -E_ACCES; /* the kernel's switches, and /proc/self/mem */
  if (flags & (O_DIRECTORY | O_PATH))
    return NO_VIEW;
  i64 fd = memory_file();
  if (IS_ERR(fd))
    return fd;
  int good = own && put_own(fd, own);
  if (!good) {
    char full[RT_PATH_BYTES + 16] = "/proc/self/";
    if (own)
      rt_copy(full + rt_strlen(full), own, rt_strlen(own) + 1);
    i64 from = raw4(__NR_openat, -100, own ? full : path, O_CLOEXEC | O_NONBLOCK, 0);
    u64 st[18];
    if (IS_ERR(from)) {
      raw1(__NR_close, fd);
      return from;
    }
    good = !raw2(__NR_fstat, from, st) && (((u32)st[3]) & S_IFMT) == S_IFREG && put_copy(fd, from);
    raw1(__NR_close, from);
  }
  raw3(__NR_lseek, fd, 0, 0);
  if (!good) {
    raw1(__NR_close, fd);
    return NO_VIEW;
  }
  if (!(flags & O_CLOEXEC))
    raw3(__NR_fcntl, fd, 2 /* F_SETFD */, 0);
  return fd;
}

/* Whether the path is answered here: with the descriptor of a snapshot, or an error. */
int rt_view_open(const char *path, u64 flags, i64 *answer) {
  if (!begins(path, "/proc/") && !begins(path, "/sys/"))
    return 0;
  *answer = open_view(path, flags);
  return *answer != NO_VIEW;
}

/* What a link below /proc/self leads to, where that is of the enclave; 0 otherwise. */
i64 rt_view_link(const char *path, char *to, u64 bytes) {
  const char *own = about_self(path), *text = RT->exec_name;
  if (!own || !rt_streq(own, "exe"))
    return 0;
  u64 slash = *text != '/', n = rt_strlen(text);
  if (n + slash > bytes)
    n = bytes - slash;
  to[0] = '/';
  rt_copy(to + slash, text, n);
  return (i64)(n + slash);
}

/* ---- across hosts ---- */

void rt_view_save(u32 fd, struct rt_ofd *o) {
  u64 at = RT->content_used, room = RT_CONTENT_BYTES - at;
  i64 offset = raw3(__NR_lseek, fd, 0, 1);
  i64 n = raw4(__NR_pread64, fd, RT->content + at, room, 0);
  o->blocker = IS_ERR(n) || (u64)n == room ? BLOCK_CONTENT : 0;
  o->offset = offset;
  o->object.content_bytes = o->blocker ? 0 : (u32)n;
  RT->content_used += o->object.content_bytes;
}

i64 rt_view_restore(const struct rt_ofd *o) {
  i64 fd = rt_raised(memory_file());
  if (IS_ERR(fd))
    return fd;
  i64 n = raw3(__NR_write, fd, RT->content + o->object.content, o->object.content_bytes);
  if (n == (i64)o->object.content_bytes && raw3(__NR_lseek, fd, o->offset, 0) == o->offset)
    return fd;
  raw1(__NR_close, fd);
  return -E_INVAL;
}
