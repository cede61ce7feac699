// A program in C++: exceptions across frames, containers, streams, threads and thread-local objects.
// usage: objects ROUNDS
#include <atomic>
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

struct Failure : std::runtime_error {
  explicit Failure(long code) : std::runtime_error("failure " + std::to_string(code)), code(code) {
  }
  long code;
};

struct Guard {
  long &count;
  ~Guard() {
    count++;
  }
};

static thread_local std::vector<long> mine;
static std::mutex lock;
static std::map<std::string, long> shared;
static std::atomic<long> total;

__attribute__((noinline)) static long dig(long depth, long x, long &unwound) {
  Guard guard{unwound};
  if (depth == 0) {
    if (x % 3 == 0)
      throw Failure(x);
    return x;
  }
  return dig(depth - 1, x + depth, unwound) + 1;
}

static void work(long id, long rounds) {
  long unwound = 0, caught = 0;
  std::unordered_map<long, std::unique_ptr<std::string>> table;
  for (long i = 0; i < rounds; i++) {
    try {
      total += dig(10, i * id, unwound);
    } catch (const Failure &failure) {
      caught += failure.code % 7;
      std::ostringstream text;
      text << failure.what() << ' ' << i * 0.5;
      table[i % 5000] = std::make_unique<std::string>(text.str());
    }
    mine.push_back(i);
    if (mine.size() > 3000) {
      std::sort(mine.begin(), mine.end(), std::greater<>());
      mine.clear();
      std::lock_guard<std::mutex> hold(lock);
      shared["thread " + std::to_string(id % 3)] += caught + unwound;
    }
  }
  for (auto &[key, text] : table)
    total += static_cast<long>(text->size()) + key;
  total += caught * 3 + unwound;
}

int main(int argc, char **argv) {
  long rounds = argc > 1 ? std::strtol(argv[1], nullptr, 0) : 1000;
  std::vector<std::thread> threads;
  for (long id = 1; id <= 3; id++)
    threads.emplace_back(work, id, rounds);
  for (auto &thread : threads)
    thread.join();
  long sum = total;
  for (auto &[name, count] : shared)
    sum = sum * 31 + count;
  std::printf("answer %ld\n", sum);
}
