/* Floating point, vector registers and x87: a Jacobi iteration with AVX2, sums in long double, and
 * a changed rounding mode; nothing but registers holds the state of the inner loops.
 * usage: floats ROUNDS */
#include <fenv.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define SIDE 512
typedef double v4 __attribute__((vector_size(32)));
static double grid[2][SIDE][SIDE] __attribute__((aligned(32)));

__attribute__((target("avx2"))) static void relax(int from) {
  for (int y = 1; y < SIDE - 1; y++)
    for (int x = 4; x < SIDE - 4; x += 4) {
      v4 up = *(v4 *)&grid[from][y - 1][x], down = *(v4 *)&grid[from][y + 1][x];
      v4 here = *(v4 *)&grid[from][y][x];
      *(v4 *)&grid[!from][y][x] = (up + down + here + here) * 0.2500001;
    }
}

__attribute__((target("avx2"))) static double spin(long n) {
  v4 a = {1.0, 2.0, 3.0, 4.0}, b = {1e-9, 2e-9, 3e-9, 4e-9};
  for (long i = 0; i < n; i++) {
    a = a * 0.9999999 + b;
    b = b * 1.0000001 - a * 1e-12;
  }
  return a[0] + a[1] * 3 + a[2] * 5 + b[3];
}

int main(int argc, char **argv) {
  long rounds = argc > 1 ? strtol(argv[1], NULL, 0) : 200;
  for (int y = 0; y < SIDE; y++)
    for (int x = 0; x < SIDE; x++)
      grid[0][y][x] = grid[1][y][x] = (double)((x * 31 + y * 17) % 101) / 7.0;
  long double sum = 0;
  double vectors = 0;
  fesetround(FE_UPWARD);
  for (long r = 0; r < rounds; r++) {
    relax(r & 1);
    vectors += spin(200000);
    for (int i = 1; i < 20000; i++)
      sum += 1.0L / ((long double)i + (long double)grid[0][i % SIDE][7] * 1e-6L);
  }
  double total = 0;
  for (int y = 0; y < SIDE; y++)
    for (int x = 0; x < SIDE; x++)
      total += grid[rounds & 1][y][x];
  printf("answer %a %La %a %d\n", total, sum, vectors, fegetround() == FE_UPWARD);
  return 0;
}
