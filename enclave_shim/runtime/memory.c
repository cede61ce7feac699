/* brk, mmap and their kin, served from the arena, so that all memory of the program is in it.
 *
 * The table of mappings is a sorted array in the arena. What is not handed out is PROT_NONE and a
 * hole in the memfd: a stray access faults as it would natively, and costs no memory. A hole that
 * is punched is invisible to write-protection tracking, so it is marked by hand (after the punch:
 * whoever clears the mark first and then reads the page sees the zeros, or finds a new mark). What
 * is a hole already is left alone: giving back a large mapping that was hardly used is not as if
 * all of it had been written. */
#include "rt.h"

#define PROT_NONE 0
#define PROT_READ 1
#define PROT_WRITE 2
#define PROT_RW 3
#define MAP_PRIVATE 2
#define MAP_TYPE 15
#define MAP_FIXED 0x10
#define MAP_ANONYMOUS 0x20
#define MAP_FIXED_NOREPLACE 0x100000
#define MREMAP_MAYMOVE 1
#define MREMAP_FIXED 2
#define MREMAP_DONTUNMAP 4
#define FALLOC_PUNCH 3 /* PUNCH_HOLE | KEEP_SIZE */
#define MADV_DONTNEED 4
#define MADV_REMOVE 9
#define KIND_ANON 0
#define KIND_HEAP 2
#define KIND_FILE 3
#define KIND_SHARED_FILE 5
#define SEEK_DATA 3
#define SEEK_HOLE 4
#define PIECES_APART 64         /* pieces of memory in use that are looked for; the rest is taken as one */
#define HEAP_MARGIN (1ul << 20) /* mmap, coming from above, leaves brk this much to grow */

static int in_arena(u64 start, u64 end) {
  return start < end && start >= RT->low && end <= RT->high;
}

/* Index of the first mapping that ends above the address. */
static u32 find_vma(u64 addr) {
  u32 lo = 0, hi = RT->vma_count;
  while (lo < hi) {
    u32 mid = (lo + hi) / 2;
    if (RT->vmas[mid].end > addr)
      hi = mid;
    else
      lo = mid + 1;
  }
  return lo;
}

static void move_vmas(u32 from, u32 to, u32 count) {
  struct rt_vma *v = RT->vmas;
  if (to < from) {
    rt_copy(&v[to], &v[from], count * sizeof *v);
    return;
  }
  for (u32 i = count; i-- > 0;)
    rt_copy(&v[to + i], &v[from + i], sizeof *v);
}

static int insert_vma(u32 at, u64 start, u64 end, u32 prot, u32 kind) {
  if (RT->vma_count == RT_MAX_VMAS) {
    CTL->vma_limit_hit = 1;
    return -E_NOMEM;
  }
  move_vmas(at, at + 1, RT->vma_count - at);
  struct rt_vma *v = &RT->vmas[at];
  v->start = start;
  v->end = end;
  v->prot = prot;
  v->kind = kind;
  RT->vma_count++;
  return 0;
}

static void merge_around(u32 at) {
  for (u32 i = at ? at - 1 : 0; i < at + 2 && i + 1 < RT->vma_count;) {
    struct rt_vma *a = &RT->vmas[i], *b = a + 1;
    if (a->end == b->start && a->prot == b->prot && a->kind == b->kind) {
      a->end = b->end;
      move_vmas(i + 2, i + 1, RT->vma_count - i - 2);
      RT->vma_count--;
    } else {
      i++;
    }
  }
}

static int add_vma(u64 start, u64 end, u32 prot, u32 kind) {
  u32 at = find_vma(start);
  int r = insert_vma(at, start, end, prot, kind);
  if (!r)
    merge_around(at);
  return r;
}

/* Make a boundary at the address, if a mapping spans it. */
static int split_at(u64 addr) {
  u32 i = find_vma(addr);
  struct rt_vma *v = &RT->vmas[i];
  if (i == RT->vma_count || v->start >= addr)
    return 0;
  u64 end = v->end;
  int r = insert_vma(i + 1, addr, end, v->prot, v->kind);
  if (!r)
    v->end = addr;
  return r;
}

static int cut_vmas(u64 start, u64 end) {
  if (split_at(start) || split_at(end))
    return -E_NOMEM;
  u32 first = find_vma(start), last = first;
  while (last < RT->vma_count && RT->vmas[last].start < end)
    last++;
  move_vmas(last, first, RT->vma_count - last);
  RT->vma_count -= last - first;
  return 0;
}

static void mark_pages(u64 start, u64 end) {
  rt_fill((u8 *)MARKS_BASE + (start - ARENA_BASE) / PAGE_BYTES, 1, (end - start) / PAGE_BYTES);
}

static i64 punch_whole(u64 start, u64 end) {
  i64 r = raw4(__NR_fallocate, CTL->fd_arena, FALLOC_PUNCH, start - ARENA_BASE, end - start);
  mark_pages(start, end);
  return r;
}

static i64 seek_arena(u64 from, u32 whence) {
  i64 r = raw3(__NR_lseek, CTL->fd_arena, from - ARENA_BASE, whence);
  return IS_ERR(r) ? r : r + (i64)ARENA_BASE;
}

/* Make it a hole, and mark what was none. A page that another thread takes into use behind the
 * search stays, as if it had been written after this call. */
static i64 punch(u64 start, u64 end) {
  for (u32 pieces = 0; pieces < PIECES_APART && start < end; pieces++) {
    i64 used = seek_arena(start, SEEK_DATA);
    if (used == -E_NXIO || (!IS_ERR(used) && (u64)used >= end))
      return 0;
    i64 hole = IS_ERR(used) ? used : seek_arena((u64)used, SEEK_HOLE);
    if (IS_ERR(hole))
      break;
    start = (u64)used;
    u64 stop = (u64)hole < end ? (u64)hole : end;
    i64 r = stop > start ? punch_whole(start, stop) : 0; /* another thread may have punched it */
    if (IS_ERR(r))
      return r;
    start = stop;
  }
  return start < end ? punch_whole(start, end) : 0;
}

static i64 protect(u64 start, u64 end, u32 prot) {
  return raw3(__NR_mprotect, start, end - start, prot);
}

/* Highest gap of that many bytes, or 0. */
static u64 find_gap(u64 bytes) {
  u64 top = RT->high;
  u64 floor = PAGE_UP(RT->brk_now) + HEAP_MARGIN;
  for (u32 i = RT->vma_count; i-- > 0;) {
    struct rt_vma *v = &RT->vmas[i];
    if (v->end > RT->high || v->start < RT->low)
      continue;
    if (top >= v->end && top - v->end >= bytes && top - bytes >= floor)
      return top - bytes;
    if (v->start < top)
      top = v->start;
    if (top <= floor)
      return 0;
  }
  return top >= floor && top - floor >= bytes ? top - bytes : 0;
}

void rt_memory_init(u64 low, u64 high) {
  RT->low = low;
  RT->high = high;
  RT->brk_start = RT->brk_now = low;
  RT->vma_count = 0;
  if (IS_ERR(protect(low, high, PROT_NONE)))
    rt_fail(E_NOMEM, "the arena could not be protected");
}

void rt_memory_add(u64 start, u64 end, u32 prot, u32 kind) {
  if (add_vma(start, end, prot, kind))
    rt_fail(E_NOMEM, "the table of mappings is full");
}

u64 rt_memory_take(u64 bytes, u32 prot, u32 kind) {
  bytes = PAGE_UP(bytes);
  u64 start = bytes ? find_gap(bytes) : 0;
  if (!start || IS_ERR(protect(start, start + bytes, prot)))
    return 0;
  if (add_vma(start, start + bytes, prot, kind)) {
    protect(start, start + bytes, PROT_NONE);
    return 0;
  }
  return start;
}

static i64 unmap(u64 start, u64 end) {
  int r = cut_vmas(start, end);
  if (r)
    return r;
  protect(start, end, PROT_NONE);
  return punch(start, end);
}

void rt_memory_give(u64 start, u64 bytes) {
  unmap(start, start + PAGE_UP(bytes));
}

/* A file is mapped by copying it: private, or shared and read-only. */
static i64 fill_from_file(u64 start, u64 bytes, i32 fd, u64 offset) {
  u32 pins = rt_ofd_of((u64)fd)->pins;
  for (u64 done = 0; done < bytes;) {
    i64 n = raw4(__NR_pread64, fd, start + done, bytes - done, offset + done);
    if (IS_ERR(n))
      return n;
    if (n == 0)
      break;
    rt_mark(start + done, (u64)n);
    if (pins)
      rt_write_again(start + done, (u64)n);
    done += (u64)n;
  }
  return 0;
}

i64 sys_mmap(struct call *c) {
  u64 addr = c->a, bytes = PAGE_UP(c->b), flags = c->d;
  u32 prot = (u32)c->c & 7;
  int anon = (flags & MAP_ANONYMOUS) != 0;
  if (c->b == 0 || bytes < c->b || (addr & (PAGE_BYTES - 1) && flags & MAP_FIXED))
    return -E_INVAL;
  if (!anon) {
    if (!rt_fd_ok(c->e))
      return -E_BADF;
    if ((flags & MAP_TYPE) != MAP_PRIVATE && prot & PROT_WRITE)
      return rt_refuse(c) + E_NOSYS - E_NODEV; /* a writable shared file mapping */
  }
  if (!anon && c->f & (PAGE_BYTES - 1))
    return -E_INVAL;
  u32 kind = anon ? KIND_ANON : (flags & MAP_TYPE) == MAP_PRIVATE ? KIND_FILE : KIND_SHARED_FILE;
  u32 first_prot = anon ? prot : PROT_RW;
  u64 start;
  if (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) {
    u64 end = addr + bytes;
    if (!in_arena(addr, end))
      return -E_NOMEM;
    u32 i = find_vma(addr);
    if (flags & MAP_FIXED_NOREPLACE && i < RT->vma_count && RT->vmas[i].start < end)
      return -E_EXIST;
    i64 r = unmap(addr, end);
    if (IS_ERR(r))
      return r;
    if (IS_ERR(protect(addr, end, first_prot)) || add_vma(addr, end, first_prot, kind))
      return -E_NOMEM;
    start = addr;
  } else {
    start = rt_memory_take(bytes, first_prot, kind);
    if (!start)
      return -E_NOMEM;
  }
  if (!anon) {
    i64 r = fill_from_file(start, bytes, (i32)c->e, c->f);
    if (IS_ERR(r)) {
      unmap(start, start + bytes);
      return r;
    }
    if (prot != PROT_RW) {
      struct call again = {__NR_mprotect, start, bytes, prot, 0, 0, 0, c->uc, c->self};
      sys_mprotect(&again);
    }
  }
  return (i64)start;
}

i64 sys_munmap(struct call *c) {
  u64 start = c->a, end = start + PAGE_UP(c->b);
  if (start & (PAGE_BYTES - 1) || c->b == 0 || !in_arena(start, end))
    return -E_INVAL;
  return unmap(start, end);
}

i64 sys_mprotect(struct call *c) {
  u64 start = c->a, end = start + PAGE_UP(c->b);
  u32 prot = (u32)c->c & 7;
  if (start & (PAGE_BYTES - 1) || end < start)
    return -E_INVAL;
  if (start == end)
    return 0;
  u64 at = start;
  u32 i = find_vma(start);
  for (; i < RT->vma_count && RT->vmas[i].start <= at && at < end; i++) {
    if (RT->vmas[i].kind == KIND_SHARED_FILE && prot & PROT_WRITE)
      return rt_refuse(c) + E_NOSYS - E_ACCES; /* what is written would not reach the file */
    at = RT->vmas[i].end;
  }
  if (at < end)
    return -E_NOMEM;
  if (split_at(start) || split_at(end))
    return -E_NOMEM;
  i64 r = protect(start, end, prot);
  if (IS_ERR(r))
    return r;
  u32 first = find_vma(start);
  for (i = first; i < RT->vma_count && RT->vmas[i].start < end; i++)
    RT->vmas[i].prot = prot;
  for (u32 k = i; k + 1 > first && k > 0; k--)
    merge_around(k - 1);
  return 0;
}

i64 sys_madvise(struct call *c) {
  u64 start = c->a, end = start + PAGE_UP(c->b);
  if (start & (PAGE_BYTES - 1) || end < start)
    return -E_INVAL;
  if (c->c != MADV_DONTNEED && c->c != MADV_REMOVE)
    return 0; /* hints: heeding none is allowed */
  if (start == end)
    return 0;
  if (!in_arena(start, end))
    return -E_INVAL;
  return punch(start, end);
}

i64 sys_msync(struct call *c) {
  (void)c;
  return 0; /* no mapping is backed by a file */
}

i64 sys_brk(struct call *c) {
  u64 want = c->a, old = PAGE_UP(RT->brk_now), now = PAGE_UP(want);
  if (want < RT->brk_start || want > RT->high)
    return (i64)RT->brk_now;
  if (now > old) {
    u32 next = find_vma(old);
    if (next < RT->vma_count && RT->vmas[next].start < now)
      return (i64)RT->brk_now;
    if (IS_ERR(protect(old, now, PROT_RW)) || add_vma(old, now, PROT_RW, KIND_HEAP))
      return (i64)RT->brk_now;
  } else if (now < old && IS_ERR(unmap(now, old))) {
    return (i64)RT->brk_now;
  }
  RT->brk_now = want;
  return (i64)want;
}

i64 sys_mremap(struct call *c) {
  u64 old = c->a, old_bytes = PAGE_UP(c->b), bytes = PAGE_UP(c->c), flags = c->d;
  if (old & (PAGE_BYTES - 1) || !bytes || !old_bytes || !in_arena(old, old + old_bytes))
    return -E_INVAL;
  if (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP))
    return rt_refuse(c);
  u32 i = find_vma(old);
  if (i == RT->vma_count || RT->vmas[i].start > old || RT->vmas[i].end < old + old_bytes)
    return -E_FAULT;
  u32 prot = RT->vmas[i].prot, kind = RT->vmas[i].kind;
  if (bytes <= old_bytes)
    return bytes < old_bytes && IS_ERR(unmap(old + bytes, old + old_bytes)) ? -E_NOMEM : (i64)old;
  u64 end = old + bytes, limit = i + 1 < RT->vma_count ? RT->vmas[i + 1].start : RT->high;
  if (RT->vmas[i].end == old + old_bytes && end <= limit && end <= RT->high) {
    if (IS_ERR(protect(old + old_bytes, end, prot)) || add_vma(old + old_bytes, end, prot, kind))
      return -E_NOMEM;
    return (i64)old;
  }
  if (!(flags & MREMAP_MAYMOVE))
    return -E_NOMEM;
  u64 to = rt_memory_take(bytes, prot | PROT_RW, kind);
  if (!to)
    return -E_NOMEM;
  rt_copy((void *)to, (void *)old, old_bytes);
  rt_mark(to, old_bytes);
  if ((prot | PROT_RW) != prot) {
    struct call again = {__NR_mprotect, to, bytes, prot, 0, 0, 0, c->uc, c->self};
    sys_mprotect(&again);
  }
  unmap(old, old + old_bytes);
  return (i64)to;
}
