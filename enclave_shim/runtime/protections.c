/* The protections of a fresh process's memory, from the travelling table of mappings.
 *
 * The process maps its memory readable and writable throughout. Before the program runs there, what
 * is not handed out must be out of reach, and every mapping must have its protection. That is a call
 * for each piece, and a program that stands still may have tens of thousands. So it is done after
 * rounds as well, from the table as it has arrived by then, and at the end only where that was wrong.
 *
 * A table that was sent while the program changed it may be half of one and half of another. It is
 * looked at in a copy, and used if it could be one: whatever comes of it, the last one decides. */
#include "rt.h"

#define PROT_NONE 0
#define PROT_RW 3
#define PRIVATE_ANONYMOUS 0x22

struct table {
  u32 count;
  struct rt_vma vmas[RT_MAX_VMAS];
};

/* Outside the arena: it says what is so in this process. */
struct rt_protections {
  struct rt_layout image;
  u64 high;
  struct table *applied, *wanted;
  struct table tables[2];
};

struct rt_protections *rt_protections_of_fresh_memory(const struct rt_layout *image) {
  i64 at = raw6(__NR_mmap, 0, sizeof(struct rt_protections), PROT_RW, PRIVATE_ANONYMOUS, -1, 0);
  if (IS_ERR(at))
    rt_fail((int)-at, "there is no memory for the table of protections");
  struct rt_protections *p = (struct rt_protections *)at;
  p->image = *image;
  p->high = ARENA_BASE + CTL->arena_bytes;
  p->applied = &p->tables[0];
  p->wanted = &p->tables[1];
  p->applied->count = 1;
  p->applied->vmas[0] = (struct rt_vma){image->low, p->high, PROT_RW, 0};
  return p;
}

void rt_protections_forget(struct rt_protections *p) {
  raw2(__NR_munmap, p, sizeof *p);
}

static int read_table(struct rt_protections *p) {
  struct table *t = p->wanted;
  t->count = *(volatile u32 *)&RT->vma_count;
  if (t->count > RT_MAX_VMAS)
    return -E_INVAL;
  rt_copy(t->vmas, RT->vmas, t->count * sizeof t->vmas[0]);
  for (u32 i = 0; i < t->count; i++) {
    struct rt_vma *v = &t->vmas[i];
    int arena = v->start >= ALT_STACKS_END && v->end <= p->high;
    int image = v->start >= p->image.data_start && v->end <= p->image.data_end;
    if (v->start >= v->end || ((v->start | v->end) & (PAGE_BYTES - 1)) || (!arena && !image) || v->prot > 7 ||
        (i && v->start < v[-1].end))
      return -E_INVAL;
  }
  return 0;
}

/* One of the two tables on the way through all addresses: its first mapping that ends above `at`. */
struct walk {
  const struct table *table;
  u32 next;
};

static u64 change_behind(struct walk *w, u64 at, u64 limit) {
  const struct table *t = w->table;
  while (w->next < t->count && t->vmas[w->next].end <= at)
    w->next++;
  if (w->next == t->count)
    return limit;
  const struct rt_vma *v = &t->vmas[w->next];
  u64 change = v->start > at ? v->start : v->end;
  return change < limit ? change : limit;
}

/* Below `low` is what the runtime has laid out: there only what is listed differs from the rest. */
static u32 prot_at(const struct walk *w, u64 at, u64 low) {
  const struct table *t = w->table;
  if (w->next < t->count && t->vmas[w->next].start <= at)
    return t->vmas[w->next].prot;
  return at < low ? PROT_RW : PROT_NONE;
}

/* Only what differs is touched: a change of protection walks every page table entry of its range. */
int rt_protections_apply(struct rt_protections *p) {
  int bad = read_table(p);
  if (bad)
    return bad;
  struct walk applied = {p->applied, 0}, wanted = {p->wanted, 0};
  u64 low = p->image.low, start = 0, end = 0;
  u32 prot = 0;
  i64 r = 0;
  for (u64 at = 0, next; at < p->high && !IS_ERR(r); at = next) {
    next = change_behind(&applied, at, at < low ? low : p->high);
    next = change_behind(&wanted, at, next);
    u32 want = prot_at(&wanted, at, low);
    if (prot_at(&applied, at, low) == want)
      continue;
    if (end != at || prot != want) {
      if (start < end)
        r = raw3(__NR_mprotect, start, end - start, prot);
      start = at;
      prot = want;
    }
    end = next;
  }
  if (start < end && !IS_ERR(r))
    r = raw3(__NR_mprotect, start, end - start, prot);
  struct table *was = p->applied;
  p->applied = p->wanted;
  p->wanted = was;
  return IS_ERR(r) ? (int)r : 0;
}
