/* A store of records in files, as an embedded database without a cache makes it: every operation goes to
 * the kernel. Records of 512 bytes are read and changed at random places of a table file, each change is
 * appended to a log file first, and now and then the log is closed, renamed and begun anew.
 *
 * usage: records TABLE_MIB OPERATIONS [PER_SECOND]
 * Ends with status 3 if a record is not what was written. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { RECORD = 512, WORDS = RECORD / 8, LOG_RECORDS = 4096 };

static uint64_t mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9ULL;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void must(int holds, const char *what) {
  if (!holds) {
    perror(what);
    exit(1);
  }
}

static void fill(uint64_t *record, uint64_t number, uint64_t version) {
  record[0] = number;
  record[1] = version;
  for (int i = 2; i < WORDS; i++)
    record[i] = mix(number * WORDS + (uint64_t)i + (version << 40));
}

static int begin_log(void) {
  int log = open("records.log", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600);
  must(log >= 0, "records.log");
  return log;
}

int main(int argc, char **argv) {
  uint64_t table_mib = argc > 1 ? strtoull(argv[1], NULL, 0) : 64;
  uint64_t operations = argc > 2 ? strtoull(argv[2], NULL, 0) : 1000000;
  double per_second = argc > 3 ? strtod(argv[3], NULL) : 0; /* 0: as fast as it can */
  uint64_t count = (table_mib << 20) / RECORD, record[WORDS], wanted[WORDS], digest = 0, logged = 0;
  int table = open("records.table", O_RDWR | O_CREAT | O_TRUNC, 0600);
  must(table >= 0, "records.table");
  for (uint64_t i = 0; i < count; i++) {
    fill(record, i, 0);
    must(write(table, record, RECORD) == RECORD, "write");
  }
  int log = begin_log();
  printf("filled\n");
  fflush(stdout);
  double begin = seconds();
  for (uint64_t i = 0; i < operations; i++) {
    if (per_second > 0 && (double)i > (seconds() - begin) * per_second)
      nanosleep(&(struct timespec){0, 1000000}, NULL);
    uint64_t number = mix(i + 1) % count;
    off_t at = (off_t)(number * RECORD);
    must(pread(table, record, RECORD, at) == RECORD, "pread");
    fill(wanted, number, record[1]);
    if (memcmp(record, wanted, RECORD)) {
      fprintf(stderr, "records: record %llu is not what was written\n", (unsigned long long)number);
      return 3;
    }
    digest = mix(digest ^ record[2]);
    if (i % 2 == 0)
      continue;
    fill(record, number, record[1] + 1);
    must(write(log, record, RECORD) == RECORD, "write");
    must(pwrite(table, record, RECORD, at) == RECORD, "pwrite");
    if (++logged % LOG_RECORDS == 0) {
      struct stat st;
      must(fstat(log, &st) == 0 && st.st_size == LOG_RECORDS * RECORD, "records.log");
      must(close(log) == 0 && rename("records.log", "records.old") == 0, "rename");
      log = begin_log();
    }
  }
  printf("all operations after %.3f s\n", seconds() - begin);
  printf("answer %016llx\n", (unsigned long long)digest);
  return 0;
}
