/* memcpy, memmove and memset of a program that marks its writes.
 *
 * A block of up to a page is marked by its two ends; a longer one is done page by page, so that the
 * two slots always stand for all that is being written. They are compiled without the pass. */
#include <stddef.h>

#include "slots.h"

#define PAGE 4096ul

typedef unsigned char byte;
typedef unsigned long long v8 __attribute__((aligned(1), may_alias));
typedef unsigned v4 __attribute__((aligned(1), may_alias));
typedef unsigned short v2 __attribute__((aligned(1), may_alias));
typedef long long v16 __attribute__((vector_size(16), aligned(1), may_alias));

static inline void strings(byte *to, const byte *from, size_t n) {
  __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

/* All loads before the first store, so it does for overlapping blocks as well. n <= 64. */
static inline __attribute__((always_inline)) void copy_small(byte *to, const byte *from, size_t n) {
  if (n >= 32) {
    v16 a = *(const v16 *)from, b = *(const v16 *)(from + 16);
    v16 c = *(const v16 *)(from + n - 32), d = *(const v16 *)(from + n - 16);
    *(v16 *)to = a;
    *(v16 *)(to + 16) = b;
    *(v16 *)(to + n - 32) = c;
    *(v16 *)(to + n - 16) = d;
  } else if (n >= 16) {
    v16 a = *(const v16 *)from, b = *(const v16 *)(from + n - 16);
    *(v16 *)to = a;
    *(v16 *)(to + n - 16) = b;
  } else if (n >= 8) {
    v8 a = *(const v8 *)from, b = *(const v8 *)(from + n - 8);
    *(v8 *)to = a;
    *(v8 *)(to + n - 8) = b;
  } else if (n >= 4) {
    v4 a = *(const v4 *)from, b = *(const v4 *)(from + n - 4);
    *(v4 *)to = a;
    *(v4 *)(to + n - 4) = b;
  } else if (n >= 2) {
    v2 a = *(const v2 *)from, b = *(const v2 *)(from + n - 2);
    *(v2 *)to = a;
    *(v2 *)(to + n - 2) = b;
  } else if (n) {
    *to = *from;
  }
}

/* Forwards; right for overlapping blocks if `to` is below `from`. At most one page. */
static inline void copy_up(byte *to, const byte *from, size_t n) {
  if (n >= 1024) {
    strings(to, from, n);
    return;
  }
  for (; n > 64; n -= 64, to += 64, from += 64) {
    v16 a = *(const v16 *)from, b = *(const v16 *)(from + 16);
    v16 c = *(const v16 *)(from + 32), d = *(const v16 *)(from + 48);
    *(v16 *)to = a;
    *(v16 *)(to + 16) = b;
    *(v16 *)(to + 32) = c;
    *(v16 *)(to + 48) = d;
  }
  copy_small(to, from, n);
}

/* Backwards; right for overlapping blocks if `to` is above `from`. At most one page. */
static inline void copy_down(byte *to, const byte *from, size_t n) {
  for (; n > 64; n -= 64) {
    const byte *end = from + n;
    v16 a = *(const v16 *)(end - 16), b = *(const v16 *)(end - 32);
    v16 c = *(const v16 *)(end - 48), d = *(const v16 *)(end - 64);
    *(v16 *)(to + n - 16) = a;
    *(v16 *)(to + n - 32) = b;
    *(v16 *)(to + n - 48) = c;
    *(v16 *)(to + n - 64) = d;
  }
  copy_small(to, from, n);
}

static inline size_t to_page_end(const byte *at, size_t n) {
  size_t room = PAGE - ((size_t)at & (PAGE - 1));
  return room < n ? room : n;
}

void *memmove(void *to_, const void *from_, size_t n) {
  byte *to = to_;
  const byte *from = from_;
  if (n == 0 || to == from)
    return to_;
  if (n <= PAGE) {
    optmig_mark(to, n);
    if (n <= 64)
      copy_small(to, from, n);
    else if ((size_t)(to - from) >= n)
      copy_up(to, from, n);
    else
      copy_down(to, from, n);
  } else if ((size_t)(to - from) >= n) {
    while (n) {
      size_t part = to_page_end(to, n);
      optmig_mark(to, part);
      copy_up(to, from, part);
      to += part;
      from += part;
      n -= part;
    }
  } else {
    while (n) {
      size_t part = ((size_t)(to + n - 1) & (PAGE - 1)) + 1;
      part = part < n ? part : n;
      n -= part;
      optmig_mark(to + n, part);
      copy_down(to + n, from + n, part);
    }
  }
  return to_;
}

void *memcpy(void *restrict to, const void *restrict from, size_t n) {
  if (__builtin_expect(n - 1 < 64, 1)) {
    optmig_mark(to, n);
    copy_small(to, from, n);
    return to;
  }
  return memmove(to, from, n);
}

static inline void fill(byte *to, int value, size_t n) {
  if (n >= 512) {
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(value) : "memory");
    return;
  }
  v8 word = (unsigned char)value * 0x0101010101010101ull;
  v16 wide = {(long long)word, (long long)word};
  if (n >= 16) {
    for (size_t at = 0; at + 16 <= n; at += 16)
      *(v16 *)(to + at) = wide;
    *(v16 *)(to + n - 16) = wide;
  } else if (n >= 8) {
    *(v8 *)to = word;
    *(v8 *)(to + n - 8) = word;
  } else if (n >= 4) {
    *(v4 *)to = (v4)word;
    *(v4 *)(to + n - 4) = (v4)word;
  } else {
    for (size_t at = 0; at < n; at++)
      to[at] = (byte)value;
  }
}

void *memset(void *to_, int value, size_t n) {
  byte *to = to_;
  while (n) {
    size_t part = n <= PAGE ? n : to_page_end(to, n);
    optmig_mark(to, part);
    fill(to, value, part);
    to += part;
    n -= part;
  }
  return to_;
}
