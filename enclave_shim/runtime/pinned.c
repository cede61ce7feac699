/* Reads for which the kernel pins the program's pages: data that comes past the page tables.
 *
 * With O_DIRECT the disk writes into the program's memory itself. The kernel faults the pages in when
 * the read begins, which counts as a write to them, and the data comes later. A tracker that protects
 * them again in between sees no second write, and a page would arrive as it was before. So such a read
 * is trapped, and when it has returned, while nothing can park the thread, its pages are written once more.
 *
 * Some file systems read so without being asked to (FUSE and 9p without a cache, ZFS). Which ones only
 * do so for O_DIRECT is known for those that are named here, and assumed of no other. */
#include "rt.h"

#define MADV_POPULATE_WRITE 23
#define MAX_BLOCK_BYTES (64ul << 10) /* a disk writes whole blocks, also where the file ends within one */

static int copies_unless_direct(u64 fd) {
  static const u32 known[] = {0xef53 /* ext4 */,     0x58465342 /* XFS */,   0x9123683e /* btrfs */,
                              0xf2f52010 /* F2FS */, 0x01021994 /* tmpfs */, 0x6969 /* NFS */};
  u64 status[15]; /* struct statfs; f_type is its first word */
  if (raw2(__NR_fstatfs, fd, status))
    return 0;
  for (u32 i = 0; i < ARRAY_LEN(known); i++)
    if (status[0] == known[i])
      return 1;
  return 0;
}

int rt_pins(u64 fd, u32 flags) {
  return flags & O_DIRECT || !copies_unless_direct(fd);
}

/* As if every page of it were written to, without changing any. What cannot be written to is not the
 * program's any more. */
void rt_write_again(u64 at, u64 bytes) {
  u64 first = PAGE_DOWN(at);
  raw3(__NR_madvise, first, PAGE_UP(at + bytes) - first, MADV_POPULATE_WRITE);
}

/* What the call is to fill, if it is a read; copied, because its own data may take the place of the vectors.
 */
static u64 filled_by(const struct call *c, struct rt_vector *v) {
  switch (c->nr) {
  case __NR_read:
  case __NR_pread64: v[0] = (struct rt_vector){c->b, c->c}; return 1;
  case __NR_readv:
  case __NR_preadv:
  case __NR_preadv2: return rt_vectors_of(c, v);
  default: return 0;
  }
}

i64 rt_read_pinned(struct call *c) {
  struct rt_vector vectors[RT_MAX_VECTORS];
  u64 count = filled_by(c, vectors);
  i64 r = rt_forward(c);
  u64 left = IS_ERR(r) ? ~0ul : (u64)r + MAX_BLOCK_BYTES; /* an error may come after some of the data */
  for (u64 i = 0; i < count && left; i++) {
    u64 bytes = vectors[i].bytes < left ? vectors[i].bytes : left;
    if (bytes)
      rt_write_again(vectors[i].base, bytes);
    left -= bytes;
  }
  return r;
}
