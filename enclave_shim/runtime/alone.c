/* An image that is started directly, by nobody's agent.
 *
 * It refuses, so that nobody takes a bare process for an enclave. But a build system must be able to run
 * what it has just compiled: `configure` decides by it whether it cross-compiles, and many a tree builds
 * its generators with the compiler it was given. So the usual names of such probes run, and anything else
 * where OPTMIG_ALONE=1 is set: as an ordinary process, without the runtime, unprotected. */
#include "rt.h"

static int begins(const char *text, const char *with) {
  while (*with)
    if (*text++ != *with++)
      return 0;
  return 1;
}

static const char *last_part(const char *path) {
  const char *last = path;
  for (; *path; path++)
    if (*path == '/')
      last = path + 1;
  return last;
}

int rt_may_run_alone(const char *wish, const char *name) {
  static const char *const probes[] = {"conftest" /* autoconf */, "cmTC_" /* CMake */,
                                       "sanitycheck" /* Meson */};
  if (wish)
    return rt_streq(wish, "1");
  for (u64 i = 0; name && i < ARRAY_LEN(probes); i++)
    if (begins(last_part(name), probes[i]))
      return 1;
  return 0;
}
