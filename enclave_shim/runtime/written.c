/* What the program writes into its files, so that a move need not compare whole files while it is parked.
 *
 * One byte stands for a block of a file, in a table that all files share: where a file begins in it is told
 * by its inode, so two files may meet there, and then more is sent than was written, never less. Another
 * byte stands for a whole file, for calls that change it otherwise.
 *
 * A mark alone does not do: the kernel may write long after the mark was made, and read, and cleared. So a
 * call that changes a file is also noted in a slot for as long as it is under way. The agent clears the
 * marks, then reads the slots, then the files; what is in a slot counts as written once more the next time.
 * Let a call's data land after the agent has read the block. If its mark was made before the marks were
 * cleared, the slot was taken before, and is still taken. Otherwise the mark is found the next time. */
#include "rt.h"

#define WHOLE (~0ul)
#define ANY_INODE (~0ul)
#define LARGEST_MARKED_BYTES (FILE_MARKS * FILE_BLOCK_BYTES)
#define SLOT_TRIES 8

static volatile u8 *marks(void) {
  return (volatile u8 *)(CTL_BASE + FILE_MARKS_OFFSET);
}

static u64 home(u64 inode) {
  return (inode * FILE_MARKS_FACTOR) >> FILE_MARKS_SHIFT;
}

static void mark_whole(u64 inode) {
  marks()[FILE_MARKS + home(inode) % FILE_WHOLE_MARKS] = 1;
}

void rt_file_mark(u64 inode, u64 from, u64 bytes) {
  if (!bytes)
    return;
  if (bytes > LARGEST_MARKED_BYTES || from + bytes < from) {
    mark_whole(inode);
    return;
  }
  u64 last = (from + bytes - 1) / FILE_BLOCK_BYTES;
  for (u64 block = from / FILE_BLOCK_BYTES; block <= last; block++)
    marks()[(home(inode) + block) % FILE_MARKS] = 1;
}

u64 rt_file_inode(u64 fd, u32 flags) {
  u64 st[18]; /* struct stat: st_ino is its second word, st_size its seventh */
  if (!(flags & O_ACCMODE) || flags & O_PATH || raw2(__NR_fstat, fd, st))
    return 0;
  if ((((u32)st[3]) & S_IFMT) != S_IFREG)
    return 0;
  if (st[6] == 0) /* it is new, or was cut: what an inode of this number held before is gone */
    mark_whole(st[1]);
  return st[1];
}

/* ---- calls under way ---- */

/* The locked instruction orders the slot before all that follows: the look whether writes are watched, too.
 */
static int take(volatile struct rt_writing *w, u64 inode, u64 from, u64 bytes) {
  u32 is_free = 0;
  if (!__atomic_compare_exchange_n(&w->used, &is_free, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
    return 0;
  w->inode = inode;
  w->from = from;
  w->bytes = bytes;
  return 1;
}

volatile struct rt_writing *rt_writing_begin(u64 inode, u64 from, u64 bytes) {
  u64 first = ((u64)__builtin_frame_address(0) >> 12) * FILE_MARKS_FACTOR >> 32;
  for (u64 i = 0; i < SLOT_TRIES; i++) {
    volatile struct rt_writing *w = &RT->writings[(first + i) % RT_MAX_WRITINGS];
    if (take(w, inode, from, bytes))
      return w;
  }
  return 0;
}

void rt_writing_end(volatile struct rt_writing *w) {
  w->used = 0;
}

static void went_elsewhere(volatile struct rt_writing *w) {
  if (w->used)
    w->inode = ANY_INODE; /* it has another number here */
}

void rt_writings_restore(void) {
  for (u32 i = 0; i < RT_MAX_WRITINGS; i++)
    went_elsewhere(&RT->writings[i]);
  for (u32 i = 0; i < RT_MAX_THREADS; i++)
    went_elsewhere(&RT->threads[i].writing);
}

/* ---- trapped calls ---- */

/* What is appended needs no mark: the file has grown. */
struct change {
  int at_position; /* of the descriptor: its end is known afterwards */
  u64 from, bytes;
};

static struct change change_of(const struct call *c, int appends) {
  struct rt_vector vectors[RT_MAX_VECTORS];
  struct change at_position = {!appends, 0, appends ? 0 : WHOLE};
  switch (c->nr) {
  case __NR_pwrite64: return (struct change){0, c->d, appends ? 0 : c->c};
  case __NR_pwritev2:
    if (c->d == ~0ul)
      return at_position;
    /* fall through */
  case __NR_pwritev: {
    u64 count = appends ? 0 : rt_vectors_of(c, vectors), bytes = 0;
    for (u64 i = 0; i < count; i++)
      bytes += vectors[i].bytes;
    return (struct change){0, c->d, bytes};
  }
  case __NR_fallocate: return (struct change){0, 0, c->b & ~1ul /* FALLOC_FL_KEEP_SIZE */ ? WHOLE : 0};
  case __NR_write:
  case __NR_writev:
  case __NR_sendfile: return at_position;
  default: return (struct change){0, 0, WHOLE};
  }
}

static int changes(const struct call *c) {
  switch (c->nr) {
  case __NR_write:
  case __NR_writev:
  case __NR_pwrite64:
  case __NR_pwritev:
  case __NR_pwritev2:
  case __NR_ftruncate:
  case __NR_fallocate:
  case __NR_sendfile:
  case __NR_copy_file_range: return 1;
  case __NR_ioctl: return (c->b >> 8 & 0xff) != 'T'; /* one of a terminal's asks what it is */
  default: return 0;
  }
}

i64 rt_file_call(struct call *c, u64 fd, const struct rt_ofd *o) {
  u64 inode = o->inode;
  if (!inode || !changes(c))
    return o->pins ? rt_read_pinned(c) : rt_forward(c);
  struct change change = change_of(c, (o->flags & O_APPEND) != 0);
  volatile struct rt_writing *w = &c->self->writing;
  take(w, inode, change.from, change.bytes);
  u32 watched = CTL->files_watched;
  if (watched && change.at_position)
    w->from = change.from = (u64)raw3(__NR_lseek, fd, 0, 1 /* SEEK_CUR */);
  else if (watched)
    rt_file_mark(inode, change.from, change.bytes);
  i64 r = rt_forward(c);
  if (watched && change.at_position) {
    u64 end = (u64)raw3(__NR_lseek, fd, 0, 1);
    rt_file_mark(inode, change.from, end < change.from ? WHOLE : end - change.from);
  }
  rt_writing_end(w);
  return r;
}

i64 rt_truncate_fd(struct rt_thread *self, u64 fd, u64 bytes) {
  u64 inode = rt_file_inode(fd, 1 /* O_WRONLY */);
  take(&self->writing, inode, 0, WHOLE);
  mark_whole(inode);
  i64 r = raw2(__NR_ftruncate, fd, bytes);
  rt_writing_end(&self->writing);
  return r;
}
