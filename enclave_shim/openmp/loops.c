/* Loops: who does which iterations.
 *
 * Iterations are counted from 0; only the ends are turned into the program's own numbers. A loop
 * whose schedule is decided while it runs stands in one of the team's buffers: the n-th of a region
 * in buffer n mod DISPATCH_BUFFERS, as soon as the loop before it there is done by all. */
#include "kmp.h"

/* kinds of schedule, as the compiler numbers them */
enum {
  STATIC_CHUNKED = 33,
  STATIC = 34,
  DYNAMIC = 35,
  GUIDED = 36,
  RUNTIME = 37,
  AUTO = 38,
  ORDERED_FIRST = 64, /* the same again, ordered */
  DISTRIBUTE_CHUNKED = 91,
  DISTRIBUTE = 92,
  MODIFIERS = 3 << 29
};

static uint64_t trip_count(int64_t lower, int64_t upper, int64_t stride, bool is_signed) {
  if (stride > 0) {
    bool none = is_signed ? upper < lower : (uint64_t)upper < (uint64_t)lower;
    return none ? 0 : ((uint64_t)upper - (uint64_t)lower) / (uint64_t)stride + 1;
  }
  bool none = is_signed ? lower < upper : (uint64_t)lower < (uint64_t)upper;
  return none ? 0 : ((uint64_t)lower - (uint64_t)upper) / (0 - (uint64_t)stride) + 1;
}

/* The n-th of `parts` blocks as equal as they can be. */
static void block(uint64_t trip, uint64_t parts, uint64_t n, uint64_t *first, uint64_t *count) {
  uint64_t each = trip / parts, more = trip % parts;
  *first = n * each + (n < more ? n : more);
  *count = each + (n < more);
}

/* ---- static: known at once ---- */

struct share {
  uint64_t first, count, stride, trip;
  bool last;
};

static struct share static_share(int kind, uint64_t trip, uint64_t chunk) {
  struct place *p = &omp_self()->place;
  uint64_t size = (uint64_t)p->team->size, n = (uint64_t)p->number;
  struct share s = {0, 0, trip, trip, false};
  kind &= ~MODIFIERS;
  if (kind == DISTRIBUTE || kind == DISTRIBUTE_CHUNKED) { /* one team of teams: all is its own */
    s.count = trip;
    s.last = true;
  } else if (kind == STATIC_CHUNKED) {
    chunk = chunk ? chunk : 1;
    s.first = n * chunk;
    s.count = chunk; /* the compiler cuts at the end */
    s.stride = size * chunk;
    s.last = trip && (trip - 1) / chunk % size == n;
  } else {
    block(trip, size, n, &s.first, &s.count);
    s.last = s.count && s.first + s.count == trip;
  }
  return s;
}

#define STATIC_INIT(name, type, wide, is_signed)                                                             \
  void __kmpc_for_static_init_##name(ident *where, int32_t id, int32_t kind, int32_t *last, type *lower,     \
                                     type *upper, wide *stride, wide step, wide chunk) {                     \
    (void)where, (void)id;                                                                                   \
    uint64_t trip = trip_count((int64_t)*lower, (int64_t)*upper, (int64_t)step, is_signed);                  \
    struct share s = static_share(kind, trip, chunk > 0 ? (uint64_t)chunk : 0);                              \
    if (last)                                                                                                \
      *last = s.last;                                                                                        \
    if (!trip)                                                                                               \
      return;                                                                                                \
    type begin = *lower;                                                                                     \
    if (!s.count) { /* nothing for this thread: an empty range beyond the end */                             \
      *lower = (type)((uint64_t)*upper + (uint64_t)step);                                                    \
      return;                                                                                                \
    }                                                                                                        \
    *lower = (type)((uint64_t)begin + s.first * (uint64_t)step);                                             \
    *upper = (type)((uint64_t)begin + (s.first + s.count - 1) * (uint64_t)step);                             \
    *stride = (wide)(s.stride * (uint64_t)step);                                                             \
  }

STATIC_INIT(4, int32_t, int32_t, true)
STATIC_INIT(4u, uint32_t, int32_t, false)
STATIC_INIT(8, int64_t, int64_t, true)
STATIC_INIT(8u, uint64_t, int64_t, false)

void __kmpc_for_static_fini(ident *where, int32_t id) {
  (void)where, (void)id;
}

/* ---- decided while the loop runs ---- */

static void dispatch_init(int kind, int64_t lower, int64_t upper, int64_t stride, int64_t chunk,
                          bool is_signed) {
  struct thread *t = omp_self();
  struct place *p = &t->place;
  kind &= ~MODIFIERS;
  if (kind > ORDERED_FIRST && kind < DISTRIBUTE_CHUNKED)
    kind -= 32;
  if (kind == RUNTIME) {
    static const int kinds[] = {0, STATIC, DYNAMIC, GUIDED, STATIC};
    kind = kinds[omp_settings.schedule];
    chunk = omp_settings.chunk;
    if (kind == STATIC && chunk > 0)
      kind = STATIC_CHUNKED;
  }
  if (kind == AUTO)
    kind = STATIC;
  p->kind = kind;
  p->chunk = chunk > 0 ? (uint64_t)chunk : 1;
  p->lower = lower;
  p->stride = stride;
  p->trip = trip_count(lower, upper, stride, is_signed);
  p->bumped = false;
  uint64_t size = (uint64_t)p->team->size;
  if (kind == STATIC) { /* one chunk each */
    block(p->trip, size, (uint64_t)p->number, &p->at, &p->chunk);
    p->step = p->trip;
  } else {
    p->at = (uint64_t)p->number * p->chunk;
    p->step = size * p->chunk;
  }
  struct loop *l = &p->team->loops[p->loops % DISPATCH_BUFFERS];
  OMP_WAIT(t, atomic_load(&l->serial) == p->loops);
  pthread_mutex_lock(&p->team->lock);
  if (!atomic_load(&l->ready)) {
    atomic_store(&l->next, 0);
    atomic_store(&l->ordered, 0);
    atomic_store(&l->gone, 0);
    atomic_store(&l->ready, true);
  }
  pthread_mutex_unlock(&p->team->lock);
}

/* Take the next chunk: its first iteration, and how many; 0 when there is none. */
static uint64_t take(struct place *p, struct loop *l, uint64_t *first) {
  uint64_t count = p->chunk;
  if (p->kind == STATIC || p->kind == STATIC_CHUNKED) {
    *first = p->at;
    p->at += p->step;
  } else if (p->kind == GUIDED) {
    *first = atomic_load(&l->next);
    do {
      if (*first >= p->trip)
        return 0;
      count = (p->trip - *first) / (2 * (uint64_t)p->team->size);
      count = count > p->chunk ? count : p->chunk;
    } while (!atomic_compare_exchange_weak(&l->next, first, *first + count));
  } else {
    if (atomic_load(&l->next) >= p->trip) /* so that it cannot grow without end */
      return 0;
    *first = atomic_fetch_add(&l->next, count);
  }
  if (*first >= p->trip)
    return 0;
  return count < p->trip - *first ? count : p->trip - *first;
}

static bool dispatch_next(int32_t *last, int64_t *lower, int64_t *upper, int64_t *stride) {
  struct thread *t = omp_self();
  struct place *p = &t->place;
  struct loop *l = &p->team->loops[p->loops % DISPATCH_BUFFERS];
  uint64_t first = 0, count = take(p, l, &first);
  if (!count) {
    unsigned serial = p->loops++;
    if (atomic_fetch_add(&l->gone, 1) + 1 == (unsigned)p->team->size) {
      atomic_store(&l->ready, false);
      atomic_store(&l->serial, serial + DISPATCH_BUFFERS);
      omp_event_raise(&p->team->event);
    }
    return false;
  }
  p->ordered_at = first;
  if (last)
    *last = first + count == p->trip;
  *lower = (int64_t)((uint64_t)p->lower + first * (uint64_t)p->stride);
  *upper = (int64_t)((uint64_t)p->lower + (first + count - 1) * (uint64_t)p->stride);
  *stride = p->stride;
  return true;
}

static void wait_for_turn(struct thread *t, struct loop *l) {
  OMP_WAIT(t, atomic_load(&l->ordered) == t->place.ordered_at);
}

static struct loop *ordered_loop(struct thread *t) {
  return &t->place.team->loops[t->place.loops % DISPATCH_BUFFERS];
}

void __kmpc_ordered(ident *where, int32_t id) {
  (void)where, (void)id;
  struct thread *t = omp_self();
  wait_for_turn(t, ordered_loop(t));
}

void __kmpc_end_ordered(ident *where, int32_t id) {
  (void)where, (void)id;
  struct thread *t = omp_self();
  t->place.bumped = true;
  atomic_fetch_add(&ordered_loop(t)->ordered, 1);
  omp_event_raise(&t->place.team->event);
}

/* The end of one iteration of an ordered loop, which need not have had an ordered part. */
static void iteration_ends(void) {
  struct thread *t = omp_self();
  if (!t->place.bumped) {
    wait_for_turn(t, ordered_loop(t));
    __kmpc_end_ordered(NULL, 0);
  }
  t->place.bumped = false;
  t->place.ordered_at++;
}

#define DISPATCH(name, type, wide, is_signed)                                                                \
  void __kmpc_dispatch_init_##name(ident *where, int32_t id, int32_t kind, type lower, type upper,           \
                                   wide stride, wide chunk) {                                                \
    (void)where, (void)id;                                                                                   \
    dispatch_init(kind, (int64_t)lower, (int64_t)upper, (int64_t)stride, (int64_t)chunk, is_signed);         \
  }                                                                                                          \
  int32_t __kmpc_dispatch_next_##name(ident *where, int32_t id, int32_t *last, type *lower, type *upper,     \
                                      wide *stride) {                                                        \
    (void)where, (void)id;                                                                                   \
    int64_t low, high, step;                                                                                 \
    if (!dispatch_next(last, &low, &high, &step))                                                            \
      return 0;                                                                                              \
    *lower = (type)low;                                                                                      \
    *upper = (type)high;                                                                                     \
    *stride = (wide)step;                                                                                    \
    return 1;                                                                                                \
  }                                                                                                          \
  void __kmpc_dispatch_fini_##name(ident *where, int32_t id) {                                               \
    (void)where, (void)id;                                                                                   \
    iteration_ends();                                                                                        \
  }

DISPATCH(4, int32_t, int32_t, true)
DISPATCH(4u, uint32_t, int32_t, false)
DISPATCH(8, int64_t, int64_t, true)
DISPATCH(8u, uint64_t, int64_t, false)

/* Called once more after the loop: dispatch_next has done what is to be done. */
void __kmpc_dispatch_deinit(ident *where, int32_t id) {
  (void)where, (void)id;
}
