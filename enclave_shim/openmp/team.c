/* Teams: parallel regions, the workers that run them, barriers, and what a team does together. */
#define _GNU_SOURCE
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kmp.h"

_Thread_local struct thread *omp_self_or_null;
static atomic_int next_id;
static pthread_key_t leaving;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* ---- waiting ---- */

static void futex_wait(atomic_uint *word, unsigned seen) {
  syscall(SYS_futex, word, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, seen, NULL);
}

static void futex_wake(atomic_uint *word, int count) {
  syscall(SYS_futex, word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, count);
}

unsigned omp_event_begin(struct event *e) {
  return atomic_load(&e->count);
}

void omp_event_wait(struct event *e, unsigned seen) {
  atomic_fetch_add(&e->sleepers, 1);
  futex_wait(&e->count, seen);
  atomic_fetch_sub(&e->sleepers, 1);
}

void omp_event_raise(struct event *e) {
  atomic_fetch_add(&e->count, 1);
  if (atomic_load(&e->sleepers))
    futex_wake(&e->count, INT_MAX);
}

/* A lock in one zeroed word: 0 free, 1 taken, 2 taken and waited for. */
void omp_word_lock(unsigned *word) {
  atomic_uint *w = (atomic_uint *)word;
  unsigned old = 0;
  if (atomic_compare_exchange_strong(w, &old, 1))
    return;
  while (atomic_exchange(w, 2) != 0)
    futex_wait(w, 2);
}

bool omp_word_try(unsigned *word) {
  unsigned old = 0;
  return atomic_compare_exchange_strong((atomic_uint *)word, &old, 1);
}

void omp_word_unlock(unsigned *word) {
  if (atomic_exchange((atomic_uint *)word, 0) == 2)
    futex_wake((atomic_uint *)word, 1);
}

/* ---- teams ---- */

static void *must(void *memory) {
  if (!memory) {
    fputs("OpenMP: no memory for a team\n", stderr);
    abort();
  }
  return memory;
}

static struct team *new_team(int size) {
  struct team *team = must(calloc(1, sizeof *team));
  team->members = must(calloc((size_t)size, sizeof *team->members));
  pthread_mutex_init(&team->lock, NULL);
  return team;
}

static void free_team(struct team *team) {
  if (!team)
    return;
  pthread_mutex_destroy(&team->lock);
  free(team->members);
  free(team);
}

/* As it must be when a region begins. Nobody but its maker knows the team then. */
static void begin_team(struct team *team, struct thread *maker, int size) {
  struct team *outer = maker->place.team;
  team->size = size;
  team->kept = maker->place;
  team->level = outer ? outer->level + 1 : 0;
  team->active_level = (outer ? outer->active_level : 0) + (size > 1);
  atomic_store(&team->singles, 0);
  for (unsigned i = 0; i < DISPATCH_BUFFERS; i++) {
    atomic_store(&team->loops[i].serial, i);
    atomic_store(&team->loops[i].ready, false);
    atomic_store(&team->loops[i].gone, 0);
  }
}

static void take_place(struct thread *t, struct team *team, int number) {
  struct member *m = &team->members[number];
  memset(&t->place, 0, sizeof t->place);
  memset(&m->implicit, 0, sizeof m->implicit);
  m->thread = t;
  t->place.team = team;
  t->place.number = number;
  t->place.task = &m->implicit;
}

/* microtask(&id, &number, argv[0], …, argv[argc - 1]): the number of arguments is not known here. */
void omp_invoke(microtask run, int32_t *id, int32_t *number, int argc, void **argv);
__asm__(".pushsection .text.omp_invoke,\"ax\",@progbits\n"
        ".globl omp_invoke\n"
        ".type omp_invoke,@function\n"
        "omp_invoke:\n"
        "  .cfi_startproc\n"
        "  push %rbp\n"
        "  .cfi_def_cfa_offset 16\n"
        "  .cfi_offset %rbp, -16\n"
        "  mov %rsp, %rbp\n"
        "  .cfi_def_cfa_register %rbp\n"
        "  mov %rdi, %r11\n" /* run */
        "  mov %r8, %r10\n"  /* argv */
        "  movslq %ecx, %rax\n"
        "  mov %rsi, %rdi\n"
        "  mov %rdx, %rsi\n"
        "  lea -4(%rax), %rcx\n" /* how many go onto the stack */
        "  test %rcx, %rcx\n"
        "  jle 2f\n"
        "  mov %rcx, %rdx\n"
        "  and $1, %rdx\n"
        "  shl $3, %rdx\n"
        "  sub %rdx, %rsp\n" /* keeps the stack aligned */
        "1: push 24(%r10,%rcx,8)\n"
        "  dec %rcx\n"
        "  jnz 1b\n"
        "2: cmp $1, %rax\n"
        "  jl 3f\n"
        "  mov (%r10), %rdx\n"
        "  cmp $2, %rax\n"
        "  jl 3f\n"
        "  mov 8(%r10), %rcx\n"
        "  cmp $3, %rax\n"
        "  jl 3f\n"
        "  mov 16(%r10), %r8\n"
        "  cmp $4, %rax\n"
        "  jl 3f\n"
        "  mov 24(%r10), %r9\n"
        "3: xor %eax, %eax\n"
        "  call *%r11\n"
        "  leave\n"
        "  .cfi_def_cfa %rsp, 8\n"
        "  ret\n"
        "  .cfi_endproc\n"
        ".size omp_invoke, . - omp_invoke\n"
        ".popsection\n");

static void run_region(struct thread *t) {
  struct team *team = t->place.team;
  int32_t id = t->id, number = t->place.number;
  omp_invoke(team->run, &id, &number, team->argc, team->argv);
  omp_barrier(t);
}

/* ---- workers ---- */

static void *worker(void *argument) {
  struct thread *t = argument;
  struct pool *mine = t->master;
  omp_self_or_null = t;
  for (unsigned round = 0;; round++) {
    OMP_WAIT_ON(&mine->event, NO_TASK, t, atomic_load(&t->go) != round);
    if (t->stop)
      break;
    struct team *team = t->next_team;
    take_place(t, team, t->next_number);
    run_region(t);
    /* the team may be gone as soon as its maker knows that everybody has left */
    if (atomic_fetch_sub(&mine->at_work, 1) == 1)
      omp_event_raise(&mine->left);
  }
  t->place.team = NULL;
  pthread_setspecific(leaving, t);
  return NULL;
}

static void end_pool(struct pool *pool) {
  if (!pool)
    return;
  for (int i = 0; i < pool->count; i++) {
    pool->workers[i]->stop = true;
    atomic_fetch_add(&pool->workers[i]->go, 1);
  }
  omp_event_raise(&pool->event);
  for (int i = 0; i < pool->count; i++)
    pthread_join(pool->workers[i]->handle, NULL);
  end_pool(pool->inner);
  free_team(pool->team);
  free(pool->workers);
  free(pool);
}

/* A thread that has started regions ends: its workers end with it. */
static void thread_leaves(void *argument) {
  struct thread *t = argument;
  end_pool(t->pool);
  free_team(t->place.team);
  free(t);
}

static void make_key(void) {
  pthread_key_create(&leaving, thread_leaves);
}

static struct thread *new_thread(void) {
  struct thread *t = must(calloc(1, sizeof *t));
  t->id = atomic_fetch_add(&next_id, 1);
  t->next_pool = &t->pool;
  return t;
}

/* The first OpenMP construct of a thread that the program made itself. */
struct thread *omp_enter(void) {
  pthread_once(&once, make_key);
  struct thread *t = new_thread();
  struct team *team = new_team(1);
  begin_team(team, t, 1);
  take_place(t, team, 0);
  omp_self_or_null = t;
  pthread_setspecific(leaving, t);
  return t;
}

/* Make workers until there are `wanted`; there may be fewer. */
static int grow(struct pool *pool, int wanted) {
  if (wanted <= pool->count)
    return wanted;
  pool->workers = must(realloc(pool->workers, (size_t)wanted * sizeof(void *)));
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, omp_settings.stack_bytes);
  while (pool->count < wanted) {
    struct thread *t = new_thread();
    t->master = pool;
    if (pthread_create(&t->handle, &attributes, worker, t)) {
      free(t);
      break;
    }
    pool->workers[pool->count++] = t;
  }
  pthread_attr_destroy(&attributes);
  return pool->count;
}

/* ---- regions ---- */

static int size_of_next(struct thread *t) {
  int wanted = t->wanted ? t->wanted : omp_settings.threads;
  t->wanted = 0;
  if (t->place.team->active_level >= omp_settings.levels)
    return 1;
  return wanted < omp_settings.limit ? wanted : omp_settings.limit;
}

void omp_serial_begin(struct thread *t) {
  struct team *team = new_team(1);
  begin_team(team, t, 1);
  take_place(t, team, 0);
}

void omp_serial_end(struct thread *t) {
  struct team *team = t->place.team;
  omp_barrier(t);
  t->place = team->kept;
  free_team(team);
}

static void region(microtask run, int argc, void **argv) {
  struct thread *t = omp_self();
  int size = size_of_next(t);
  struct pool **slot = t->next_pool;
  if (size > 1 && !*slot)
    *slot = must(calloc(1, sizeof **slot));
  if (size > 1)
    size = grow(*slot, size - 1) + 1;
  if (size == 1) {
    int32_t id = t->id, number = 0;
    omp_serial_begin(t);
    omp_invoke(run, &id, &number, argc, argv);
    omp_serial_end(t);
    return;
  }
  struct pool *pool = *slot;
  t->next_pool = &pool->inner;
  if (pool->team_size != size) {
    free_team(pool->team);
    pool->team = new_team(size);
    pool->team_size = size;
  }
  struct team *team = pool->team;
  begin_team(team, t, size);
  team->run = run;
  team->argc = argc;
  team->argv = argv;
  atomic_store(&pool->at_work, size - 1);
  for (int i = 1; i < size; i++) {
    struct thread *w = pool->workers[i - 1];
    w->next_team = team;
    w->next_number = i;
    atomic_fetch_add(&w->go, 1);
  }
  omp_event_raise(&pool->event);
  take_place(t, team, 0);
  run_region(t);
  OMP_WAIT_ON(&pool->left, NO_TASK, t, atomic_load(&pool->at_work) == 0);
  t->place = team->kept;
  t->next_pool = slot;
}

void __kmpc_fork_call(ident *where, int32_t argc, microtask run, ...) {
  (void)where;
  void *argv[argc + 1];
  va_list list;
  va_start(list, run);
  for (int32_t i = 0; i < argc; i++)
    argv[i] = va_arg(list, void *);
  va_end(list);
  region(run, argc, argv);
}

int32_t __kmpc_global_thread_num(ident *where) {
  (void)where;
  return omp_self()->id;
}

void __kmpc_push_num_threads(ident *where, int32_t id, int32_t count) {
  (void)where, (void)id;
  omp_self()->wanted = count > 0 ? count : 0;
}

void __kmpc_push_proc_bind(ident *where, int32_t id, int bind) {
  (void)where, (void)id, (void)bind; /* threads are not bound to processors: those of another host differ */
}

void __kmpc_serialized_parallel(ident *where, int32_t id) {
  (void)where, (void)id;
  struct thread *t = omp_self();
  t->wanted = 0;
  omp_serial_begin(t);
}

void __kmpc_end_serialized_parallel(ident *where, int32_t id) {
  (void)where, (void)id;
  omp_serial_end(omp_self());
}

/* ---- what a team does together ---- */

/* All threads have come and all tasks are done. The last one to come waits for the tasks. */
void omp_barrier(struct thread *t) {
  struct team *team = t->place.team;
  unsigned generation = atomic_load(&team->barrier_generation);
  if (atomic_fetch_add(&team->arrived, 1) + 1 == (unsigned)team->size) {
    OMP_WAIT_WITH(t, ANY_TASK, atomic_load(&team->unfinished) == 0);
    atomic_store(&team->arrived, 0);
    atomic_fetch_add(&team->barrier_generation, 1);
    omp_event_raise(&team->event);
  } else {
    OMP_WAIT_WITH(t, ANY_TASK, atomic_load(&team->barrier_generation) != generation);
  }
}

void __kmpc_barrier(ident *where, int32_t id) {
  (void)where, (void)id;
  omp_barrier(omp_self());
}

int32_t __kmpc_cancel_barrier(ident *where, int32_t id) {
  __kmpc_barrier(where, id);
  return 0;
}

/* Cancellation is off, as OMP_CANCELLATION is by default: the constructs do nothing. */
int32_t __kmpc_cancel(ident *where, int32_t id, int32_t kind) {
  (void)where, (void)id, (void)kind;
  return 0;
}

int32_t __kmpc_cancellationpoint(ident *where, int32_t id, int32_t kind) {
  return __kmpc_cancel(where, id, kind);
}

void __kmpc_flush(ident *where) {
  (void)where;
  atomic_thread_fence(memory_order_seq_cst);
}

void __kmpc_critical(ident *where, int32_t id, unsigned *name) {
  (void)where, (void)id;
  omp_word_lock(name);
}

void __kmpc_critical_with_hint(ident *where, int32_t id, unsigned *name, uint32_t hint) {
  (void)hint;
  __kmpc_critical(where, id, name);
}

void __kmpc_end_critical(ident *where, int32_t id, unsigned *name) {
  (void)where, (void)id;
  omp_word_unlock(name);
}

int32_t __kmpc_master(ident *where, int32_t id) {
  (void)where, (void)id;
  return omp_self()->place.number == 0;
}

void __kmpc_end_master(ident *where, int32_t id) {
  (void)where, (void)id;
}

int32_t __kmpc_masked(ident *where, int32_t id, int32_t filter) {
  (void)where, (void)id;
  return omp_self()->place.number == filter;
}

void __kmpc_end_masked(ident *where, int32_t id) {
  (void)where, (void)id;
}

int32_t __kmpc_single(ident *where, int32_t id) {
  (void)where, (void)id;
  struct place *p = &omp_self()->place;
  unsigned mine = p->singles++;
  return atomic_compare_exchange_strong(&p->team->singles, &mine, mine + 1);
}

void __kmpc_end_single(ident *where, int32_t id) {
  (void)where, (void)id;
}

void __kmpc_copyprivate(ident *where, int32_t id, size_t bytes, void *values, void (*copy)(void *, void *),
                        int32_t is_source) {
  (void)where, (void)id, (void)bytes;
  struct thread *t = omp_self();
  if (is_source)
    t->place.team->copied = values;
  omp_barrier(t);
  if (!is_source)
    copy(values, t->place.team->copied);
  omp_barrier(t);
}

/* A reduction is gathered by the team's first thread in the order of the threads, so that a sum of
 * floating-point numbers is the same in every run. The others wait: their values are on their stacks. */
int32_t __kmpc_reduce_nowait(ident *where, int32_t id, int32_t count, size_t bytes, void *values,
                             void (*combine)(void *, void *), unsigned *name) {
  (void)where, (void)id, (void)count, (void)bytes, (void)name;
  struct thread *t = omp_self();
  struct team *team = t->place.team;
  unsigned others = (unsigned)team->size - 1;
  if (t->place.number == 0) {
    OMP_WAIT(t, atomic_load(&team->reduced) == others);
    for (unsigned i = 1; i <= others; i++)
      combine(values, team->members[i].reduction);
    atomic_store(&team->reduced, 0);
    return 1;
  }
  unsigned generation = atomic_load(&team->reduction_generation);
  team->members[t->place.number].reduction = values;
  if (atomic_fetch_add(&team->reduced, 1) + 1 == others)
    omp_event_raise(&team->event);
  OMP_WAIT(t, atomic_load(&team->reduction_generation) != generation);
  return 0;
}

void __kmpc_end_reduce_nowait(ident *where, int32_t id, unsigned *name) {
  (void)where, (void)id, (void)name;
  struct team *team = omp_self()->place.team;
  atomic_fetch_add(&team->reduction_generation, 1);
  if (team->size > 1)
    omp_event_raise(&team->event);
}

/* The barrier of the waiting form is the wait for the first thread. */
int32_t __kmpc_reduce(ident *where, int32_t id, int32_t count, size_t bytes, void *values,
                      void (*combine)(void *, void *), unsigned *name) {
  return __kmpc_reduce_nowait(where, id, count, bytes, values, combine, name);
}

void __kmpc_end_reduce(ident *where, int32_t id, unsigned *name) {
  __kmpc_end_reduce_nowait(where, id, name);
}
