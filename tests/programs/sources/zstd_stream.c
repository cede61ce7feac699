/* Compress a generated stream with worker threads, and decompress it again as it comes out.
 * usage: zstd_stream MIB LEVEL WORKERS */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ZSTD_STATIC_LINKING_ONLY
#include "zstd.h"

enum { PIECE = 1 << 20 };

static uint64_t state = 88172645463325252ULL;

static uint64_t next(void) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

/* Like a log file: words of which some are more frequent, numbers, and now and then a line of before. */
static void generate(char *to, size_t bytes) {
  static const char *const words[] = {"GET ",    "POST ",     "/index.html ", "/api/v1/items ",
                                      "200 ",    "404 ",      "Mozilla/5.0 ", "10.0.0.",
                                      "error: ", "warning: ", "ok\n",         "closed\n"};
  size_t at = 0;
  while (at < bytes) {
    char number[24];
    uint64_t roll = next();
    const char *text = words[(roll >> 8) % 12];
    if (roll % 4 == 0) {
      snprintf(number, sizeof number, "%llu ", (unsigned long long)(next() >> (roll % 50)));
      text = number;
    }
    size_t length = strlen(text);
    if (length > bytes - at)
      length = bytes - at;
    memcpy(to + at, text, length);
    at += length;
  }
}

static uint64_t digest_of(uint64_t digest, const char *content, size_t bytes) {
  for (size_t i = 0; i < bytes; i++)
    digest = digest * 31 + (unsigned char)content[i];
  return digest;
}

static size_t checked(size_t result) {
  if (ZSTD_isError(result)) {
    fprintf(stderr, "zstd: %s\n", ZSTD_getErrorName(result));
    exit(1);
  }
  return result;
}

int main(int argc, char **argv) {
  size_t mib = argc > 1 ? strtoull(argv[1], NULL, 0) : 64;
  int level = argc > 2 ? atoi(argv[2]) : 5, workers = argc > 3 ? atoi(argv[3]) : 3;
  ZSTD_CCtx *c = ZSTD_createCCtx();
  ZSTD_DCtx *d = ZSTD_createDCtx();
  char *in = malloc(PIECE), *packed = malloc(PIECE), *out = malloc(PIECE);
  if (!c || !d || !in || !packed || !out)
    return 1;
  checked(ZSTD_CCtx_setParameter(c, ZSTD_c_compressionLevel, level));
  checked(ZSTD_CCtx_setParameter(c, ZSTD_c_nbWorkers, workers));
  checked(ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, 1));
  uint64_t before = 0, after = 0, digest = 0, bytes = 0;
  for (size_t piece = 0; piece < mib; piece++) {
    generate(in, PIECE);
    before = digest_of(before, in, PIECE);
    int last = piece + 1 == mib, done = 0;
    ZSTD_inBuffer input = {in, PIECE, 0};
    while (!done) {
      ZSTD_outBuffer output = {packed, PIECE, 0};
      size_t left = checked(ZSTD_compressStream2(c, &output, &input, last ? ZSTD_e_end : ZSTD_e_continue));
      done = last ? left == 0 : input.pos == input.size;
      digest = digest_of(digest, packed, output.pos);
      bytes += output.pos;
      ZSTD_inBuffer back = {packed, output.pos, 0};
      while (back.pos < back.size) {
        ZSTD_outBuffer plain = {out, PIECE, 0};
        checked(ZSTD_decompressStream(d, &plain, &back));
        after = digest_of(after, out, plain.pos);
      }
    }
    if (piece % 16 == 15) {
      printf("%zu of %zu MiB\n", piece + 1, mib);
      fflush(stdout);
    }
  }
  ZSTD_inBuffer rest = {packed, 0, 0};
  for (ZSTD_outBuffer plain = {out, PIECE, 0};; plain.pos = 0) {
    checked(ZSTD_decompressStream(d, &plain, &rest));
    after = digest_of(after, out, plain.pos);
    if (plain.pos < plain.size)
      break;
  }
  printf("answer: zstd %s, %llu bytes, digest %016llx, %s\n", ZSTD_versionString(), (unsigned long long)bytes,
         (unsigned long long)digest, before == after ? "the same comes back" : "SOMETHING ELSE COMES BACK");
  return before != after;
}
