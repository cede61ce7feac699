/* A key-value store in memory, driven by a YCSB-like generator: threads read and update records by
 * popularity (zipfian, theta 0.99) under sharded locks; a record's size changes with every update.
 *
 * usage: kvstore MEMORY_MIB OPERATIONS READ_PERCENT THREADS
 *   READ_PERCENT  50 is YCSB's workload A, 95 its workload B
 * Which operation comes n-th depends on n only, and updates of a record commute: so the answer depends
 * neither on the number of threads nor on their order. Every read checks the record's checksum. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "zipfian.h"

enum { SHARDS = 1024, MIN_BYTES = 64, MAX_BYTES = 1984, BATCH = 1000 };

struct record {
  uint64_t key, sum, version; /* the sum of all updates; how many they were */
  struct record *next;
  uint32_t bytes;
  unsigned char content[];
};

struct shard {
  pthread_mutex_t lock;
  struct record **buckets;
};

static struct shard shards[SHARDS];
static struct zipfian popularity;
static uint64_t records, operations, buckets_per_shard, taken, broken, reads, updates;
static unsigned read_percent;
static pthread_mutex_t taking = PTHREAD_MUTEX_INITIALIZER;

static uint32_t size_of(uint64_t key, uint64_t version) {
  return (uint32_t)(MIN_BYTES + mix64(key ^ mix64(version)) % (MAX_BYTES - MIN_BYTES));
}

/* A record's content follows from its key and the sum of its updates. */
static void fill(struct record *r) {
  uint64_t x = r->key ^ r->sum;
  for (uint32_t i = 0; i + 8 <= r->bytes; i += 8) {
    x = mix64(x);
    memcpy(r->content + i, &x, 8);
  }
}

static int is_whole(const struct record *r) {
  uint64_t x = r->key ^ r->sum;
  for (uint32_t i = 0; i + 8 <= r->bytes; i += 8) {
    x = mix64(x);
    if (memcmp(r->content + i, &x, 8))
      return 0;
  }
  return r->bytes == size_of(r->key, r->version);
}

static void *must(void *memory) {
  if (!memory) {
    fprintf(stderr, "kvstore: no memory\n");
    exit(1);
  }
  return memory;
}

static struct shard *shard_of(uint64_t key) {
  return &shards[mix64(key) % SHARDS];
}

/* Where the pointer to the record is; the shard is locked. */
static struct record **place_of(struct shard *s, uint64_t key) {
  struct record **at = &s->buckets[mix64(key) / SHARDS % buckets_per_shard];
  while (*at && (*at)->key != key)
    at = &(*at)->next;
  return at;
}

static void insert(uint64_t key) {
  struct shard *s = shard_of(key);
  uint32_t bytes = size_of(key, 0);
  struct record *r = must(malloc(sizeof *r + bytes));
  *r = (struct record){.key = key, .bytes = bytes};
  fill(r);
  struct record **at = place_of(s, key);
  r->next = *at;
  *at = r;
}

static void update(struct record **at, uint64_t what) {
  struct record *r = *at;
  uint32_t bytes = size_of(r->key, r->version + 1);
  *at = r = must(realloc(r, sizeof *r + bytes));
  r->bytes = bytes;
  r->version++;
  r->sum += what;
  fill(r);
}

static void operation(uint64_t number, uint64_t *count_reads, uint64_t *count_updates,
                      uint64_t *count_broken) {
  uint64_t random = mix64(number), key = zipfian_scrambled(&popularity, mix64(random));
  struct shard *s = shard_of(key);
  pthread_mutex_lock(&s->lock);
  struct record **at = place_of(s, key);
  if (!*at || !is_whole(*at)) {
    ++*count_broken;
  } else if (random % 100 < read_percent) {
    ++*count_reads;
  } else {
    update(at, random);
    ++*count_updates;
  }
  pthread_mutex_unlock(&s->lock);
}

static void *client(void *unused) {
  (void)unused;
  uint64_t mine[3] = {0};
  for (;;) {
    pthread_mutex_lock(&taking);
    uint64_t from = taken, to = from + BATCH < operations ? from + BATCH : operations;
    taken = to;
    if (from == to) {
      reads += mine[0];
      updates += mine[1];
      broken += mine[2];
      pthread_mutex_unlock(&taking);
      return NULL;
    }
    if (from * 10 / operations != to * 10 / operations) {
      printf("%llu of %llu operations\n", (unsigned long long)to, (unsigned long long)operations);
      fflush(stdout);
    }
    pthread_mutex_unlock(&taking);
    for (uint64_t i = from; i < to; i++)
      operation(i, &mine[0], &mine[1], &mine[2]);
  }
}

int main(int argc, char **argv) {
  uint64_t bytes = (argc > 1 ? strtoull(argv[1], NULL, 0) : 256) << 20;
  operations = argc > 2 ? strtoull(argv[2], NULL, 0) : 1000000;
  read_percent = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 0) : 50;
  unsigned long threads = argc > 4 ? strtoul(argv[4], NULL, 0) : 4;
  if (threads < 1 || threads > 128 || !operations) {
    fprintf(stderr, "usage: kvstore MEMORY_MIB OPERATIONS READ_PERCENT THREADS (1 to 128)\n");
    return 2;
  }
  records = bytes / (sizeof(struct record) + (MIN_BYTES + MAX_BYTES) / 2 + sizeof(void *));
  buckets_per_shard = records / SHARDS + 1;
  for (int i = 0; i < SHARDS; i++) {
    pthread_mutex_init(&shards[i].lock, NULL);
    shards[i].buckets = must(calloc(buckets_per_shard, sizeof *shards[i].buckets));
  }
  popularity = zipfian_new(records);
  for (uint64_t key = 0; key < records; key++)
    insert(key);
  printf("loaded: %llu records\n", (unsigned long long)records);
  fflush(stdout);
  pthread_t clients[128];
  for (unsigned long i = 0; i < threads; i++)
    if (pthread_create(&clients[i], NULL, client, NULL))
      return 1;
  for (unsigned long i = 0; i < threads; i++)
    pthread_join(clients[i], NULL);
  uint64_t digest = 0, found = 0;
  for (uint64_t key = 0; key < records; key++) {
    struct record *r = *place_of(shard_of(key), key);
    if (!r || !is_whole(r)) {
      broken++;
      continue;
    }
    found += r->version;
    digest = digest * 31 + (r->sum ^ r->version);
  }
  int right = !broken && found == updates && reads + updates == operations;
  printf("answer: %llu reads, %llu updates, %llu records %s, digest %016llx\n", (unsigned long long)reads,
         (unsigned long long)updates, (unsigned long long)broken, right ? "broken" : "BROKEN",
         (unsigned long long)digest);
  return right ? 0 : 3;
}
