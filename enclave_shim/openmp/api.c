/* What programs call themselves: omp_… functions; and the settings behind them. */
#define _GNU_SOURCE
#include <ctype.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#include "kmp.h"

struct settings omp_settings;

static long number_in(const char *name, long otherwise) {
  const char *text = getenv(name);
  char *end;
  long value = text ? strtol(text, &end, 10) : 0;
  return text && end != text && value >= 0 ? value : otherwise;
}

static bool is_true(const char *name) {
  const char *text = getenv(name);
  return text && (!strcasecmp(text, "true") || !strcmp(text, "1"));
}

/* "4M", "512k", "64" (KiB): bytes */
static size_t stack_size(void) {
  const char *text = getenv("OMP_STACKSIZE");
  char *end;
  unsigned long long value = text ? strtoull(text, &end, 10) : 0;
  if (!value)
    return (size_t)4 << 20;
  switch (tolower((unsigned char)*end)) {
  case 'b': break;
  case 'm': value <<= 20; break;
  case 'g': value <<= 30; break;
  default: value <<= 10; break;
  }
  return value < 65536 ? 65536 : (size_t)value;
}

static void read_schedule(void) {
  static const struct {
    const char *name;
    omp_sched_t kind;
  } known[] = {{"static", omp_sched_static},
               {"dynamic", omp_sched_dynamic},
               {"guided", omp_sched_guided},
               {"auto", omp_sched_auto}};
  const char *text = getenv("OMP_SCHEDULE");
  const char *colon = text ? strchr(text, ':') : NULL; /* a modifier stands before it */
  if (colon)
    text = colon + 1;
  omp_settings.schedule = omp_sched_static;
  for (size_t i = 0; text && i < sizeof known / sizeof *known; i++)
    if (!strncasecmp(text, known[i].name, strlen(known[i].name))) {
      const char *comma = strchr(text, ',');
      omp_settings.schedule = known[i].kind;
      omp_settings.chunk = comma ? atoi(comma + 1) : 0;
    }
}

/* Before any construct of the program, its own constructors included. */
__attribute__((constructor(101))) static void read_settings(void) {
  int processors = omp_get_num_procs();
  omp_settings.limit = (int)number_in("OMP_THREAD_LIMIT", 1 << 20);
  omp_settings.threads = (int)number_in("OMP_NUM_THREADS", processors);
  if (omp_settings.limit < 1)
    omp_settings.limit = 1;
  if (omp_settings.threads < 1)
    omp_settings.threads = processors;
  omp_settings.levels = (int)number_in("OMP_MAX_ACTIVE_LEVELS", is_true("OMP_NESTED") ? 1 << 20 : 1);
  omp_settings.dynamic = is_true("OMP_DYNAMIC");
  const char *policy = getenv("OMP_WAIT_POLICY");
  omp_settings.spin = policy && !strcasecmp(policy, "passive") ? 0 : SPIN_ROUNDS;
  omp_settings.stack_bytes = stack_size();
  read_schedule();
}

int omp_get_thread_num(void) {
  return omp_self()->place.number;
}

int omp_get_num_threads(void) {
  return omp_self()->place.team->size;
}

int omp_get_max_threads(void) {
  return omp_settings.threads < omp_settings.limit ? omp_settings.threads : omp_settings.limit;
}

int omp_get_num_procs(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set))
    return 1;
  int count = CPU_COUNT(&set);
  return count > 0 ? count : 1;
}

int omp_get_thread_limit(void) {
  return omp_settings.limit;
}

void omp_set_num_threads(int count) {
  if (count > 0)
    omp_settings.threads = count;
}

int omp_in_parallel(void) {
  return omp_self()->place.team->active_level > 0;
}

int omp_in_final(void) {
  return omp_self()->place.task->final;
}

void omp_set_dynamic(int on) {
  omp_settings.dynamic = on != 0;
}

int omp_get_dynamic(void) {
  return omp_settings.dynamic;
}

void omp_set_nested(int on) {
  omp_settings.levels = on ? 1 << 20 : 1;
}

int omp_get_nested(void) {
  return omp_settings.levels > 1;
}

void omp_set_max_active_levels(int levels) {
  if (levels >= 0)
    omp_settings.levels = levels;
}

int omp_get_max_active_levels(void) {
  return omp_settings.levels;
}

int omp_get_supported_active_levels(void) {
  return 1 << 20;
}

int omp_get_level(void) {
  return omp_self()->place.team->level;
}

int omp_get_active_level(void) {
  return omp_self()->place.team->active_level;
}

static const struct place *at_level(int level) {
  const struct place *p = &omp_self()->place;
  if (level < 0 || level > p->team->level)
    return NULL;
  while (p->team->level > level)
    p = &p->team->kept;
  return p;
}

int omp_get_ancestor_thread_num(int level) {
  const struct place *p = at_level(level);
  return p ? p->number : -1;
}

int omp_get_team_size(int level) {
  const struct place *p = at_level(level);
  return p ? p->team->size : -1;
}

void omp_set_schedule(omp_sched_t kind, int chunk) {
  int plain = (int)kind & ~(int)omp_sched_monotonic;
  if (plain >= omp_sched_static && plain <= omp_sched_auto) {
    omp_settings.schedule = plain;
    omp_settings.chunk = chunk;
  }
}

void omp_get_schedule(omp_sched_t *kind, int *chunk) {
  *kind = (omp_sched_t)omp_settings.schedule;
  *chunk = omp_settings.chunk;
}

int omp_get_cancellation(void) {
  return 0;
}

omp_proc_bind_t omp_get_proc_bind(void) {
  return omp_proc_bind_false;
}

int omp_get_num_places(void) {
  return 0;
}

int omp_get_place_num(void) {
  return -1;
}

int omp_get_max_task_priority(void) {
  return 0;
}

int omp_get_num_teams(void) {
  return 1;
}

int omp_get_team_num(void) {
  return 0;
}

int omp_get_num_devices(void) {
  return 0;
}

int omp_get_initial_device(void) {
  return 0;
}

int omp_get_default_device(void) {
  return 0;
}

void omp_set_default_device(int device) {
  (void)device; /* there is none but the host */
}

int omp_is_initial_device(void) {
  return 1;
}

double omp_get_wtime(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

double omp_get_wtick(void) {
  return 1e-9;
}

void omp_init_lock(omp_lock_t *lock) {
  lock->word = 0;
}

void omp_init_lock_with_hint(omp_lock_t *lock, omp_sync_hint_t hint) {
  (void)hint;
  omp_init_lock(lock);
}

void omp_destroy_lock(omp_lock_t *lock) {
  lock->word = 0;
}

void omp_set_lock(omp_lock_t *lock) {
  omp_word_lock(&lock->word);
}

void omp_unset_lock(omp_lock_t *lock) {
  omp_word_unlock(&lock->word);
}

int omp_test_lock(omp_lock_t *lock) {
  return omp_word_try(&lock->word);
}

void omp_init_nest_lock(omp_nest_lock_t *lock) {
  memset(lock, 0, sizeof *lock);
}

void omp_init_nest_lock_with_hint(omp_nest_lock_t *lock, omp_sync_hint_t hint) {
  (void)hint;
  omp_init_nest_lock(lock);
}

void omp_destroy_nest_lock(omp_nest_lock_t *lock) {
  memset(lock, 0, sizeof *lock);
}

/* Only the thread itself can find its own task there, so the look without the lock is safe. */
static bool is_mine(omp_nest_lock_t *lock) {
  return __atomic_load_n(&lock->owner, __ATOMIC_RELAXED) == omp_self()->place.task;
}

void omp_set_nest_lock(omp_nest_lock_t *lock) {
  if (!is_mine(lock)) {
    omp_word_lock(&lock->word);
    __atomic_store_n(&lock->owner, omp_self()->place.task, __ATOMIC_RELAXED);
  }
  lock->count++;
}

void omp_unset_nest_lock(omp_nest_lock_t *lock) {
  if (--lock->count)
    return;
  __atomic_store_n(&lock->owner, NULL, __ATOMIC_RELAXED);
  omp_word_unlock(&lock->word);
}

int omp_test_nest_lock(omp_nest_lock_t *lock) {
  if (!is_mine(lock)) {
    if (!omp_word_try(&lock->word))
      return 0;
    __atomic_store_n(&lock->owner, omp_self()->place.task, __ATOMIC_RELAXED);
  }
  return ++lock->count;
}
