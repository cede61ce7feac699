/* Whether an arena that came from another host holds a state that can be restored.
 *
 * The source was attested and its records were sealed, so what arrives is what a runtime of this very
 * image wrote. This is the second line: a mistake there must end here in a refusal with a text, not in
 * a crash, and nothing outside the enclave may be touched before the program runs. Every index, offset,
 * count, address and path that the restore uses is bounded here, once, before the first use. What
 * only the program itself relies on (its registers, its handlers) is its own affair. */
#include "rt.h"

#define TASK_END (1ul << 47) /* user addresses end here with four levels of page tables */
#define USER_CS 0x33
#define USER_SS 0x2b
#define LONGEST_NS (1l << 62)
#define LARGEST_PIPE (1ul << 30)
#define O_NEVER_KEPT 020001300 /* O_CREAT, O_EXCL, O_TRUNC, the bit of O_TMPFILE */

/* Offsets in a signal frame's floating-point state. Source: struct _fpx_sw_bytes and struct
 * _fpstate_64, arch/x86/include/uapi/asm/sigcontext.h; Intel SDM volume 1, 13.4.2 (XSAVE header). */
#define FP_MXCSR 24
#define FP_MXCSR_MASK 28
#define FP_MAGIC1 464
#define FP_EXTENDED_BYTES 468
#define FP_XSTATE_BYTES 480
#define FP_LEGACY_BYTES 512
#define FP_XSTATE_BV 512
#define FP_XCOMP_BV 520
#define FP_MIN_BYTES 576
#define MAGIC1 0x46505853u
#define MAGIC2 0x46505845u
#define DEFAULT_MXCSR_MASK 0xffbfu

extern char __start_optmig_text[], __stop_optmig_text[];

static u32 word(u64 at) {
  return *(const u32 *)at;
}

static u64 long_word(u64 at) {
  return *(const u64 *)at;
}

static u64 enabled_features(void) {
  u32 low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (u64)high << 32 | low;
}

static u32 mxcsr_mask(void) {
  u8 area[FP_LEGACY_BYTES] __attribute__((aligned(16)));
  rt_fill(area, 0, sizeof area);
  __asm__ volatile("fxsave %0" : "=m"(area));
  u32 mask = word((u64)area + FP_MXCSR_MASK);
  return mask ? mask : DEFAULT_MXCSR_MASK;
}

static int ends(const char *text, u64 bytes) {
  for (u64 i = 0; i < bytes; i++)
    if (!text[i])
      return 1;
  return 0;
}

static void check_bounds(const struct rt_layout *image) {
  if (RT->magic != OPTMIG_RT_MAGIC || RT->abi_version != OPTMIG_ABI_VERSION ||
      RT->arena_bytes != CTL->arena_bytes)
    rt_fail(E_INVAL, "the arena does not hold a state of this runtime's version and size");
  if (RT->data_start != image->data_start || RT->data_end != image->data_end ||
      RT->data_copy != image->data_copy || RT->low != image->low)
    rt_fail(E_INVAL, "the travelling state is laid out for another image");
  if (RT->vma_count > RT_MAX_VMAS || RT->fd_high > RT_MAX_FDS || RT->ofd_high > RT_MAX_OFDS ||
      RT->shared_count > ARRAY_LEN(RT->shared_off) || RT->high != ARENA_BASE + RT->arena_bytes ||
      RT->brk_start < RT->low || RT->brk_now < RT->brk_start || RT->brk_now > RT->high || RT->vpid <= 0)
    rt_fail(E_INVAL, "the travelling state is out of bounds");
  if (!ends(RT->cwd, sizeof RT->cwd) || !ends(RT->own_dir, sizeof RT->own_dir) ||
      !ends(RT->exec_name, sizeof RT->exec_name) || !ends(RT->outside_path, sizeof RT->outside_path) ||
      RT->shared_text[sizeof RT->shared_text - 1] || RT->cwd[0] != '/' || RT->own_dir[0] != '/')
    rt_fail(E_INVAL, "a path of the travelling state is damaged");
  for (u32 i = 0; i < RT->shared_count; i++)
    if (RT->shared_off[i] >= sizeof RT->shared_text)
      rt_fail(E_INVAL, "the table of shared paths is out of bounds");
  if (RT->proc_pending & RUNTIME_SIGNALS)
    rt_fail(E_INVAL, "a signal is pending that no program can have");
}

/* What XRSTOR would refuse would kill the process after it was given the right to run. */
static int fp_ok(u64 fp, u64 low, u64 end, u64 features, u32 mask) {
  if (!fp)
    return 1;
  if (fp & 63 || fp < low || fp >= end || end - fp < FP_MIN_BYTES)
    return 0;
  u64 extended = word(fp + FP_EXTENDED_BYTES), xstate = word(fp + FP_XSTATE_BYTES);
  if (word(fp + FP_MAGIC1) != MAGIC1 || extended > end - fp || xstate < FP_MIN_BYTES ||
      xstate + sizeof(u32) > extended || word(fp + xstate) != MAGIC2)
    return 0;
  return !(word(fp + FP_MXCSR) & ~mask) && !(long_word(fp + FP_XSTATE_BV) & ~features) &&
         !long_word(fp + FP_XCOMP_BV) && !long_word(fp + FP_XCOMP_BV + 8);
}

/* There the mask is the runtime's own: it blocks signals while it answers a call. */
static int in_runtime(u64 rip) {
  return rip >= (u64)__start_optmig_text && rip < (u64)__stop_optmig_text;
}

/* What is wrong with a parked thread, or with one that ends, or 0. */
static const char *damage_of(const struct rt_thread *t, u32 i, u64 features, u32 mask) {
  u64 low = ALT_STACKS_BASE + i * ALT_STACK_BYTES, end = low + ALT_STACK_BYTES;
  if (t->used == RT_SLOT_ENDS)
    return t->stack_low == low && t->stack_bytes == ALT_STACK_BYTES ? 0 : "the end of a thread is damaged";
  if (!t->parked || t->stack_low != low || t->stack_bytes != ALT_STACK_BYTES)
    return "the frame of a parked thread is damaged: its stack";
  if (t->frame < low + PAGE_BYTES || t->frame > end - sizeof(struct rt_ucontext) || t->frame & 7)
    return "the frame of a parked thread is damaged: its place";
  const struct rt_ucontext *uc = (const struct rt_ucontext *)t->frame;
  if (uc->stack.sp != low || uc->stack.size != ALT_STACK_BYTES)
    return "the frame of a parked thread is damaged: the stack of the next signal";
  if (uc->cs != USER_CS || uc->ss != USER_SS || uc->rip >= TASK_END || uc->rsp >= TASK_END ||
      t->fs_base >= TASK_END)
    return "the frame of a parked thread is damaged: its registers";
  if (t->vtid <= 0 || t->vtid >= RT->next_vtid)
    return "the frame of a parked thread is damaged: its number";
  if (t->affinity_bytes > sizeof t->affinity || !ends(t->name, sizeof t->name))
    return "the frame of a parked thread is damaged: its settings";
  if (t->pending & RUNTIME_SIGNALS || (!in_runtime(uc->rip) && uc->sigmask & RUNTIME_SIGNALS))
    return "the frame of a parked thread is damaged: its signals";
  return fp_ok(uc->fpstate, low, end, features, mask)
             ? 0
             : "the frame of a parked thread is damaged: its floating-point state";
}

static void check_threads(void) {
  u64 features = enabled_features();
  u32 threads = 0, mask = mxcsr_mask();
  for (u32 i = 0; i < RT_MAX_THREADS; i++) {
    const struct rt_thread *t = &RT->threads[i];
    if (!t->used)
      continue;
    threads += t->used == RT_SLOT_USED;
    const char *damage = damage_of(t, i, features, mask);
    if (damage)
      rt_fail(E_INVAL, damage);
  }
  if (threads == 0 || threads != RT->thread_count || RT->lock)
    rt_fail(E_INVAL, "the table of threads is damaged");
}

static int content_ok(const struct rt_object *b) {
  if (RT->content_used > RT_CONTENT_BYTES || b->content > RT->content_used ||
      b->content_bytes > RT->content_used - b->content || b->messages > 1)
    return 0;
  u64 left = b->content_bytes;
  const u8 *at = RT->content + b->content;
  while (b->messages && left) {
    u32 length;
    if (left < sizeof length)
      return 0;
    rt_copy(&length, at, sizeof length);
    if (length > left - sizeof length)
      return 0;
    at += sizeof length + length;
    left -= sizeof length + length;
  }
  return 1;
}

/* Two ends name each other, or the other one is closed. */
static int pair_ok(const struct rt_ofd *o) {
  const struct rt_object *b = &o->object;
  u32 mode = o->flags & O_ACCMODE;
  int pipe = o->kind == OFD_PIPE;
  if (pipe ? mode > 1 || b->value < PAGE_BYTES || b->value > LARGEST_PIPE
           : (b->type != 1 && b->type != 2 && b->type != 5) || b->shut > 3)
    return 0;
  if (!pipe && b->messages != (b->type != 1))
    return 0;
  if (!b->peer)
    return content_ok(b);
  if (b->peer > RT->ofd_high)
    return 0;
  const struct rt_ofd *peer = &RT->ofds[b->peer - 1];
  return content_ok(b) && peer != o && peer->refs && peer->kind == o->kind &&
         peer->object.peer == (u32)(o - RT->ofds) + 1 && peer->object.type == b->type &&
         (!pipe || (peer->flags & O_ACCMODE) != mode);
}

static int object_ok(const struct rt_ofd *o) {
  const struct rt_object *b = &o->object;
  if (o->blocker || o->flags & ~(u32)(O_ACCMODE | O_NONBLOCK | O_DIRECT))
    return 0;
  switch (o->kind) {
  case OFD_PIPE:
  case OFD_SOCKETPAIR: return pair_ok(o);
  case OFD_EVENTFD: return b->type <= 1 && b->value != ~0ul;
  case OFD_EPOLL: return 1;
  case OFD_VIEW: return content_ok(b) && o->offset >= 0;
  case OFD_TIMERFD:
    return (b->type <= 1 || b->type == 7) && b->due_ns < LONGEST_NS && b->due_ns > -LONGEST_NS &&
           b->interval_ns >= 0 && b->interval_ns < LONGEST_NS;
  case OFD_SIGNALFD: return !(b->value & RUNTIME_SIGNALS);
  default: return 0;
  }
}

static void check_watches(void) {
  if (RT->watch_high > RT_MAX_WATCHES)
    rt_fail(E_INVAL, "the table of epoll registrations is out of bounds");
  for (u32 i = 0; i < RT->watch_high; i++) {
    const struct rt_watch *w = &RT->watches[i];
    if (!w->epoll)
      continue;
    if (w->epoll > RT->ofd_high || w->target >= RT->ofd_high || !RT->ofds[w->epoll - 1].refs ||
        !RT->ofds[w->target].refs || RT->ofds[w->epoll - 1].kind != OFD_EPOLL)
      rt_fail(E_INVAL, "the table of epoll registrations is damaged");
  }
}

/* A path beneath the own directory is opened so that the kernel keeps it there; any other must be what
 * resolving it again makes of it. */
static int ofd_ok(const struct rt_ofd *o) {
  struct rt_path p;
  if (o->kind >= OFD_PIPE)
    return object_ok(o);
  const struct rt_object *listed = &o->object;
  if (listed->value && (listed->value < RT->low || listed->value >= RT->high ||
                        listed->content_bytes > RT->high - listed->value || listed->due_ns < 0 ||
                        listed->due_ns > listed->content_bytes || o->offset > listed->due_ns))
    return 0;
  if (o->blocker || o->flags & O_NEVER_KEPT || o->offset < 0 || !ends(o->path, sizeof o->path))
    return 0;
  switch (o->kind) {
  case OFD_STDIN:
  case OFD_OUTPUT: return 1;
  case OFD_OWN: return o->path[0] && o->path[0] != '/';
  case OFD_EXTERNAL:
    if (o->flags & O_ACCMODE)
      return 0;
    break;
  case OFD_SHARED:
  case OFD_DEVICE: break;
  default: return 0;
  }
  return o->path[0] == '/' && !IS_ERR(rt_resolve(-100, o->path, &p)) && p.kind == o->kind &&
         rt_streq(p.text, o->path);
}

static void check_files(void) {
  u16 refs[RT_MAX_OFDS];
  rt_fill(refs, 0, sizeof refs);
  for (u32 fd = 0; fd < RT_MAX_FDS; fd++) {
    const struct rt_fd *f = &RT->fds[fd];
    if (f->state == FD_FREE)
      continue;
    if (f->state != FD_OPEN || fd >= RT->fd_high || f->ofd >= RT->ofd_high)
      rt_fail(E_INVAL, "the descriptor table is damaged");
    if (!refs[f->ofd]++ && !ofd_ok(&RT->ofds[f->ofd]))
      rt_fail(E_INVAL, "the table of open files is damaged");
  }
  /* Not further: each would cost a fault, and a page that the source does not have. */
  for (u32 i = 0; i < RT->ofd_high; i++)
    if (RT->ofds[i].refs != refs[i])
      rt_fail(E_INVAL, "the table of open files does not fit the descriptors");
}

void rt_check_state(const struct rt_layout *image) {
  check_bounds(image);
  check_threads();
  check_files();
  check_watches();
}
