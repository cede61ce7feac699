/* Internals of the OpenMP runtime that optmig-cc links where -fopenmp is given.
 *
 * The compiler turns OpenMP pragmas into calls of `__kmpc_…`; this is a small runtime for them on
 * POSIX threads, part of the program like libc (not of the enclave's runtime): it is mediated, it
 * travels, it is measured. One idea carries all waiting in a team: an event counter. Whoever makes
 * something true that others may wait for raises it; whoever waits reads it, looks, and sleeps on
 * the value that was read. So no wake-up can be lost, whatever stops a thread in between. */
#ifndef OPTMIG_KMP_H
#define OPTMIG_KMP_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "omp.h"

typedef struct ident ident; /* the compiler's source location: never read */
typedef int32_t (*task_routine)(int32_t, void *);
typedef void (*microtask)(int32_t *, int32_t *, ...);

enum { DISPATCH_BUFFERS = 8, SPIN_ROUNDS = 2000 };

struct event {
  atomic_uint count, sleepers;
};

/* A loop with a schedule that is decided while it runs; shared by a team. */
struct loop {
  atomic_uint serial; /* the loop of the region that may use this buffer next or uses it now */
  atomic_bool ready;
  atomic_uint gone; /* threads that found it empty */
  _Atomic uint64_t next, ordered;
};

struct task {
  struct task *next, *parent;
  struct group *group;
  atomic_uint children, references;
  bool final, destructors;
  size_t bytes; /* of the compiler's part, which follows */
};

struct group {
  struct group *outer;
  atomic_uint unfinished;
};

/* What a thread is doing in its team; saved when it enters another one. */
struct place {
  struct team *team;
  int number;
  unsigned singles, loops;
  struct task *task;
  struct group *group;
  /* the loop it is in */
  int kind;
  uint64_t chunk, trip, at, step, ordered_at;
  bool bumped;
  int64_t lower, stride;
};

/* One thread's part of a team. */
struct member {
  struct thread *thread;
  struct task implicit;
  void *reduction; /* what it brings */
};

struct team {
  int size;
  struct member *members; /* by number in the team */
  microtask run;
  int argc;
  void **argv;
  struct place kept; /* what its maker goes back to */
  int level, active_level;
  struct event event;
  atomic_uint arrived, barrier_generation;
  atomic_uint singles;
  void *copied; /* copyprivate */
  atomic_uint reduced, reduction_generation;
  pthread_mutex_t lock;
  struct task *tasks; /* ready, last made first */
  atomic_uint unfinished, ready_tasks;
  struct loop loops[DISPATCH_BUFFERS];
};

struct thread {
  int32_t id;
  struct place place;
  int wanted;                     /* num_threads clause, 0: none */
  struct pool *pool, **next_pool; /* its workers; where those of the next region are */
  /* of a worker: */
  struct pool *master;
  pthread_t handle;
  atomic_uint go;
  struct team *next_team;
  int next_number;
  bool stop;
};

/* The workers that a thread has made for the regions it starts; `inner` for regions within those. */
struct pool {
  struct pool *inner;
  struct thread **workers;
  int count;
  struct event event, left;
  atomic_int at_work; /* workers that have not left the region */
  struct team *team;  /* kept for the next region */
  int team_size;
};

struct settings {
  int threads, limit, levels, dynamic;
  int schedule; /* omp_sched_t */
  int chunk;
  int spin;
  size_t stack_bytes;
};

extern struct settings omp_settings;
extern _Thread_local struct thread *omp_self_or_null;
struct thread *omp_enter(void);

static inline struct thread *omp_self(void) {
  struct thread *t = omp_self_or_null;
  return t ? t : omp_enter();
}

unsigned omp_event_begin(struct event *e);
void omp_event_wait(struct event *e, unsigned seen);
void omp_event_raise(struct event *e);
void omp_word_lock(unsigned *word);
void omp_word_unlock(unsigned *word);
bool omp_word_try(unsigned *word);
void omp_barrier(struct thread *t);
/* Which tasks a thread may take up while it waits. In a task it may only take those that descend from
 * it: another one might want a lock that the thread holds. */
enum tasks { NO_TASK, DESCENDANTS, ANY_TASK };
bool omp_run_a_task(struct thread *t, enum tasks which);
void omp_serial_begin(struct thread *t);
void omp_serial_end(struct thread *t);

/* Wait until a condition holds, which whoever makes it true announces by the event; do tasks meanwhile. */
#define OMP_WAIT_ON(raised, tasks, t, condition)                                                             \
  for (int spins_ = 0; !(condition);) {                                                                      \
    struct event *event_ = (raised);                                                                         \
    unsigned seen_ = omp_event_begin(event_);                                                                \
    if (condition)                                                                                           \
      break;                                                                                                 \
    if (omp_run_a_task(t, tasks))                                                                            \
      continue;                                                                                              \
    if (spins_++ < omp_settings.spin)                                                                        \
      __builtin_ia32_pause();                                                                                \
    else                                                                                                     \
      omp_event_wait(event_, seen_);                                                                         \
  }
#define OMP_WAIT_WITH(t, tasks, condition) OMP_WAIT_ON(&(t)->place.team->event, tasks, t, condition)
#define OMP_WAIT(t, condition) OMP_WAIT_WITH(t, NO_TASK, condition)

#endif
