/* Tasks: a list of the team, from which every thread that waits takes work.
 *
 * A task with dependences is carried out at once by the thread that makes it. So the order of its
 * dependences is kept by the order of the program; only parallelism is lost. */
#include <stdlib.h>
#include <string.h>
#include <stdio.h>

#include "kmp.h"

/* What the compiler sees of a task; private copies follow. */
struct compiled_task {
  void *shared;
  task_routine run;
  int32_t part;
  union {
    int32_t number;
    task_routine destructors;
  } first, second;
};

enum { TASK_FINAL = 2, TASK_DESTRUCTORS = 8 };

static struct compiled_task *compiled(struct task *task) {
  return (struct compiled_task *)(void *)(task + 1);
}

static struct task *task_of(struct compiled_task *c) {
  return (struct task *)(void *)c - 1;
}

_Static_assert(sizeof(struct task) % 16 == 0, "the compiler's part must be aligned as by malloc");

static struct task *make_task(size_t bytes) {
  struct task *task = calloc(1, sizeof *task + bytes);
  if (!task) {
    fputs("OpenMP: no memory for a task\n", stderr);
    abort();
  }
  task->bytes = bytes;
  atomic_store(&task->references, 1);
  return task;
}

struct compiled_task *__kmpc_omp_task_alloc(ident *where, int32_t id, int32_t flags, size_t bytes,
                                            size_t shared_bytes, task_routine run) {
  (void)where, (void)id;
  size_t shared_at = (bytes + 15) & ~(size_t)15;
  struct task *task = make_task(shared_at + shared_bytes);
  struct compiled_task *c = compiled(task);
  task->final = (flags & TASK_FINAL) != 0 || omp_self()->place.task->final;
  task->destructors = (flags & TASK_DESTRUCTORS) != 0;
  c->run = run;
  c->shared = shared_bytes ? (char *)c + shared_at : NULL;
  return c;
}

/* Implicit tasks are part of their team; the others live as long as a child may count itself off. */
static void drop(struct task *task) {
  while (task && task->references && atomic_fetch_sub(&task->references, 1) == 1) {
    struct task *parent = task->parent;
    free(task);
    task = parent;
  }
}

static void adopt(struct thread *t, struct task *task) {
  struct task *parent = t->place.task;
  task->parent = parent;
  task->group = t->place.group;
  atomic_fetch_add(&parent->children, 1);
  if (parent->references)
    atomic_fetch_add(&parent->references, 1);
  if (task->group)
    atomic_fetch_add(&task->group->unfinished, 1);
  atomic_fetch_add(&t->place.team->unfinished, 1);
}

static void finish(struct thread *t, struct task *task) {
  struct team *team = t->place.team;
  if (task->group)
    atomic_fetch_sub(&task->group->unfinished, 1);
  atomic_fetch_sub(&task->parent->children, 1);
  atomic_fetch_sub(&team->unfinished, 1);
  drop(task);
  if (team->size > 1)
    omp_event_raise(&team->event);
}

static void carry_out(struct thread *t, struct task *task) {
  struct task *outer = t->place.task;
  struct group *group = t->place.group;
  t->place.task = task;
  t->place.group = task->group;
  compiled(task)->run(t->id, compiled(task));
  if (task->destructors)
    compiled(task)->first.destructors(t->id, compiled(task));
  t->place.task = outer;
  t->place.group = group;
  finish(t, task);
}

static bool descends(const struct task *task, const struct task *from) {
  while (task && task != from)
    task = task->parent;
  return task != NULL;
}

bool omp_run_a_task(struct thread *t, enum tasks which) {
  struct team *team = t->place.team;
  if (which == NO_TASK || !atomic_load(&team->ready_tasks))
    return false;
  pthread_mutex_lock(&team->lock);
  struct task **at = &team->tasks, *task;
  while ((task = *at) && which == DESCENDANTS && !descends(task, t->place.task))
    at = &task->next;
  if (task) {
    *at = task->next;
    atomic_fetch_sub(&team->ready_tasks, 1);
  }
  pthread_mutex_unlock(&team->lock);
  if (!task)
    return false;
  carry_out(t, task);
  return true;
}

static void start(struct thread *t, struct task *task) {
  struct team *team = t->place.team;
  enum { MANY = 256 }; /* more than that wait already: no use in another one */
  adopt(t, task);
  if (team->size == 1 || task->final || atomic_load(&team->ready_tasks) >= MANY) {
    carry_out(t, task);
    return;
  }
  pthread_mutex_lock(&team->lock);
  task->next = team->tasks;
  team->tasks = task;
  atomic_fetch_add(&team->ready_tasks, 1);
  pthread_mutex_unlock(&team->lock);
  omp_event_raise(&team->event);
}

int32_t __kmpc_omp_task(ident *where, int32_t id, struct compiled_task *c) {
  (void)where, (void)id;
  start(omp_self(), task_of(c));
  return 0;
}

int32_t __kmpc_omp_task_with_deps(ident *where, int32_t id, struct compiled_task *c, int32_t count,
                                  void *dependences, int32_t more, void *others) {
  (void)where, (void)id, (void)count, (void)dependences, (void)more, (void)others;
  struct thread *t = omp_self();
  adopt(t, task_of(c));
  carry_out(t, task_of(c));
  return 0;
}

/* Nothing to wait for: what has dependences is done. */
void __kmpc_omp_wait_deps(ident *where, int32_t id, int32_t count, void *dependences, int32_t more,
                          void *others) {
  (void)where, (void)id, (void)count, (void)dependences, (void)more, (void)others;
}

void __kmpc_omp_taskwait_deps_51(ident *where, int32_t id, int32_t count, void *dependences, int32_t more,
                                 void *others, int32_t no_wait) {
  (void)where, (void)id, (void)count, (void)dependences, (void)more, (void)others, (void)no_wait;
}

/* if(0): the compiler calls the routine itself, between these two. */
void __kmpc_omp_task_begin_if0(ident *where, int32_t id, struct compiled_task *c) {
  (void)where, (void)id;
  struct thread *t = omp_self();
  struct task *task = task_of(c);
  adopt(t, task);
  t->place.task = task;
}

void __kmpc_omp_task_complete_if0(ident *where, int32_t id, struct compiled_task *c) {
  (void)where, (void)id;
  struct thread *t = omp_self();
  struct task *task = task_of(c);
  t->place.task = task->parent;
  t->place.group = task->group;
  finish(t, task);
}

int32_t __kmpc_omp_taskwait(ident *where, int32_t id) {
  (void)where, (void)id;
  struct thread *t = omp_self();
  struct task *task = t->place.task;
  OMP_WAIT_WITH(t, DESCENDANTS, atomic_load(&task->children) == 0);
  return 0;
}

int32_t __kmpc_omp_taskyield(ident *where, int32_t id, int32_t part) {
  (void)where, (void)id, (void)part;
  omp_run_a_task(omp_self(), DESCENDANTS);
  return 0;
}

void __kmpc_taskgroup(ident *where, int32_t id) {
  (void)where, (void)id;
  struct thread *t = omp_self();
  struct group *group = calloc(1, sizeof *group);
  if (!group) {
    fputs("OpenMP: no memory for a task group\n", stderr);
    abort();
  }
  group->outer = t->place.group;
  t->place.group = group;
}

void __kmpc_end_taskgroup(ident *where, int32_t id) {
  (void)where, (void)id;
  struct thread *t = omp_self();
  struct group *group = t->place.group;
  OMP_WAIT_WITH(t, DESCENDANTS, atomic_load(&group->unfinished) == 0);
  t->place.group = group->outer;
  free(group);
}

/* A loop of tasks: copies of one, each with its own bounds. */
void __kmpc_taskloop(ident *where, int32_t id, struct compiled_task *c, int32_t condition, uint64_t *lower,
                     uint64_t *upper, int64_t stride, int32_t no_group, int32_t kind, uint64_t size,
                     void (*duplicate)(struct compiled_task *, struct compiled_task *, int32_t)) {
  struct thread *t = omp_self();
  struct task *pattern = task_of(c);
  size_t lower_at = (size_t)((char *)lower - (char *)c), upper_at = (size_t)((char *)upper - (char *)c);
  uint64_t first = *lower;
  uint64_t trip =
      stride > 0 ? ((int64_t)*upper < (int64_t)first ? 0 : (*upper - first) / (uint64_t)stride + 1)
                 : ((int64_t)first < (int64_t)*upper ? 0 : (first - *upper) / (0 - (uint64_t)stride) + 1);
  if (!no_group)
    __kmpc_taskgroup(where, id);
  uint64_t parts = kind == 1   ? (trip + size - 1) / size
                   : kind == 2 ? size
                               : 10 * (uint64_t)t->place.team->size;
  if (parts > trip)
    parts = trip;
  for (uint64_t n = 0, at = 0; n < parts; n++) {
    uint64_t count = trip / parts + (n < trip % parts);
    struct task *task = make_task(pattern->bytes);
    struct compiled_task *copy = compiled(task);
    memcpy(copy, c, pattern->bytes);
    task->final = pattern->final;
    task->destructors = pattern->destructors;
    if (c->shared)
      copy->shared = (char *)copy + ((char *)c->shared - (char *)c);
    *(uint64_t *)(void *)((char *)copy + lower_at) = first + at * (uint64_t)stride;
    *(uint64_t *)(void *)((char *)copy + upper_at) = first + (at + count - 1) * (uint64_t)stride;
    if (duplicate)
      duplicate(copy, c, n + 1 == parts);
    at += count;
    if (condition) {
      start(t, task);
    } else {
      adopt(t, task);
      carry_out(t, task);
    }
  }
  if (pattern->destructors)
    c->first.destructors(t->id, c);
  free(pattern);
  if (!no_group)
    __kmpc_end_taskgroup(where, id);
}

void __kmpc_taskloop_5(ident *where, int32_t id, struct compiled_task *c, int32_t condition, uint64_t *lower,
                       uint64_t *upper, int64_t stride, int32_t no_group, int32_t kind, uint64_t size,
                       int32_t modifier,
                       void (*duplicate)(struct compiled_task *, struct compiled_task *, int32_t)) {
  (void)modifier;
  __kmpc_taskloop(where, id, c, condition, lower, upper, stride, no_group, kind, size, duplicate);
}
