/* A day in the life of an SQL database in memory: tables, indices, transactions, joins, updates, window
 * functions, a recursive query. usage: sqlite_load ROWS ROUNDS */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "sqlite3.h"

static sqlite3 *db;

static void run(const char *sql) {
  char *error = NULL;
  if (sqlite3_exec(db, sql, NULL, NULL, &error) != SQLITE_OK) {
    fprintf(stderr, "%s: %s\n", sql, error);
    exit(1);
  }
}

static sqlite3_stmt *prepare(const char *sql) {
  sqlite3_stmt *statement;
  if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL) != SQLITE_OK) {
    fprintf(stderr, "%s: %s\n", sql, sqlite3_errmsg(db));
    exit(1);
  }
  return statement;
}

/* A digest over all rows and columns of a query. */
static uint64_t ask(const char *sql, int64_t argument) {
  sqlite3_stmt *statement = prepare(sql);
  uint64_t digest = 0;
  int status;
  sqlite3_bind_int64(statement, 1, argument);
  while ((status = sqlite3_step(statement)) == SQLITE_ROW)
    for (int i = 0; i < sqlite3_column_count(statement); i++) {
      const unsigned char *text = sqlite3_column_text(statement, i);
      for (; text && *text; text++)
        digest = digest * 31 + *text;
    }
  if (status != SQLITE_DONE) {
    fprintf(stderr, "%s: %s\n", sql, sqlite3_errmsg(db));
    exit(1);
  }
  sqlite3_finalize(statement);
  return digest;
}

static void insert(int64_t rows, int64_t round) {
  sqlite3_stmt *statement =
      prepare("INSERT INTO orders(customer, item, amount, note) VALUES(?1 * 7919 % 997, ?1 * 31 % 211, "
              "?1 * 1.25, hex(?1 * ?2))");
  run("BEGIN");
  for (int64_t i = 0; i < rows; i++) {
    sqlite3_bind_int64(statement, 1, i + round * rows);
    sqlite3_bind_int64(statement, 2, round + 1);
    if (sqlite3_step(statement) != SQLITE_DONE)
      exit(1);
    sqlite3_reset(statement);
  }
  run("COMMIT");
  sqlite3_finalize(statement);
}

int main(int argc, char **argv) {
  int64_t rows = argc > 1 ? atoll(argv[1]) : 20000, rounds = argc > 2 ? atoll(argv[2]) : 5;
  uint64_t digest = 0;
  if (sqlite3_open(":memory:", &db) != SQLITE_OK)
    return 1;
  run("PRAGMA temp_store = MEMORY;" /* nothing of it on a disk */
      "CREATE TABLE orders(id INTEGER PRIMARY KEY, customer INT, item INT, amount REAL, note TEXT);"
      "CREATE TABLE items(id INTEGER PRIMARY KEY, name TEXT, price REAL);"
      "CREATE INDEX by_customer ON orders(customer, amount); CREATE INDEX by_note ON orders(note);"
      "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 210)"
      "INSERT INTO items SELECT i, 'item ' || i, i * 0.5 FROM n;");
  for (int64_t round = 0; round < rounds; round++) {
    insert(rows, round);
    digest = digest * 31 +
             ask("SELECT i.name, count(*), sum(o.amount), max(o.note) FROM orders o JOIN items i ON o.item = "
                 "i.id WHERE o.customer > ?1 GROUP BY i.id ORDER BY 3 DESC",
                 round);
    digest = digest * 31 +
             ask("SELECT customer, amount, row_number() OVER (PARTITION BY customer ORDER BY amount), "
                 "sum(amount) OVER (PARTITION BY customer ORDER BY id) FROM orders WHERE customer % 17 = ?1",
                 round % 17);
    run("BEGIN; UPDATE orders SET amount = amount * 1.01, note = note || 'x' WHERE id % 13 = 5;"
        "DELETE FROM orders WHERE id % 29 = 3; COMMIT");
    digest =
        digest * 31 + ask("SELECT count(*), total(amount), ?1 FROM orders WHERE note LIKE '%7%x'", round);
    printf("round %" PRId64 " of %" PRId64 "\n", round + 1, rounds);
    fflush(stdout);
  }
  digest = digest * 31 + ask("PRAGMA integrity_check", 0);
  printf("answer: SQLite %s, %d changes, digest %016" PRIx64 "\n", sqlite3_libversion(),
         sqlite3_total_changes(db), digest);
  return sqlite3_close(db) != SQLITE_OK;
}
