// A program in modern C++: exceptions across functions and threads, streams, threads, tasks and their
// futures, condition variables, thread-local objects with destructors, clocks, containers of strings.
// usage: lively ROUNDS; what it answers does not depend on the schedule.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <exception>
#include <future>
#include <iomanip>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace std::chrono_literals;
using Steady = std::chrono::steady_clock;

static std::atomic<long> destroyed, backwards, naps;

// Lives once in each thread that touches it, and says so when the thread ends.
struct Own {
  std::string name;
  std::vector<long> seen;
  ~Own() {
    destroyed += 1 + static_cast<long>(seen.size());
  }
};
static thread_local Own own;

// No clock that promises it may ever step back, on whatever host the thread runs.
static void look_at_the_clock() {
  static thread_local Steady::time_point last = Steady::now();
  auto now = Steady::now();
  if (now < last)
    backwards++;
  last = now;
}

struct Refused : std::runtime_error {
  Refused(long which, const std::string &why) : std::runtime_error(why), which(which) {
  }
  long which;
};

struct Counted {
  long &count;
  ~Counted() {
    count++;
  }
};

__attribute__((noinline)) static long descend(long depth, long x, long &unwound) {
  Counted counted{unwound};
  std::string local = "frame " + std::to_string(depth); // to be destroyed on the way
  if (depth == 0) {
    if (x % 2)
      throw Refused(x, local);
    return x;
  }
  try {
    return descend(depth - 1, x + static_cast<long>(local.size()), unwound);
  } catch (const Refused &refused) {
    if (depth % 4)
      throw; // goes on through the frames of others
    std::throw_with_nested(Refused(refused.which + depth, "again"));
  }
}

static long unravel(const std::exception &error) {
  long sum = static_cast<long>(std::string(error.what()).size());
  try {
    std::rethrow_if_nested(error);
  } catch (const std::exception &inner) {
    sum += unravel(inner);
  }
  return sum;
}

static long texts(long seed) {
  std::map<std::string, std::vector<std::string>> words;
  for (long i = 0; i < 60; i++) {
    std::ostringstream made;
    made << std::setw(6) << std::setfill('.') << (seed * 7919 + i * i) % 1009 << '|' << std::hex << i << '|'
         << std::fixed << std::setprecision(3) << static_cast<double>(i) / 7;
    words["key " + std::to_string((seed + i) % 17)].push_back(made.str());
  }
  words.erase("key 3");
  long sum = 0;
  for (auto &[key, list] : words) {
    std::sort(list.begin(), list.end());
    std::istringstream read(list.front());
    std::string first;
    long number = 0;
    std::getline(read, first, '|');
    read >> std::hex >> number;
    sum = sum * 31 + number + static_cast<long>(first.size() + key.size() + list.size());
  }
  return sum & 0xffffff;
}

// Work is handed over one by one: a wake-up that is lost stops the program for ever.
class Belt {
public:
  void put(long item) {
    std::unique_lock<std::mutex> hold(lock_);
    room_.wait(hold, [this] { return items_.size() < 3; });
    items_.push_back(item);
    filled_.notify_one();
  }
  long take() {
    std::unique_lock<std::mutex> hold(lock_);
    while (!filled_.wait_for(hold, 50ms, [this] { return !items_.empty(); }))
      look_at_the_clock();
    long item = items_.front();
    items_.pop_front();
    room_.notify_one();
    return item;
  }

private:
  std::mutex lock_;
  std::condition_variable filled_, room_;
  std::deque<long> items_;
};

static long consume(Belt &belt) {
  long sum = 0;
  for (long item; (item = belt.take()) >= 0;) {
    own.seen.push_back(item);
    sum += texts(item);
    look_at_the_clock();
  }
  return sum;
}

// An exception that is thrown in another thread is caught here.
static long ask(long round) {
  long unwound = 0;
  auto task = std::async(std::launch::async, [round, &unwound] {
    own.name = "task " + std::to_string(round);
    look_at_the_clock();
    return descend(11, round, unwound);
  });
  std::promise<long> promise;
  auto kept = promise.get_future();
  std::thread other([&promise, round] {
    own.seen.assign(3, round);
    try {
      if (round % 3 == 0)
        throw Refused(round, std::string(40, 'x')); // too long to be kept in the object itself
      promise.set_value(round);
    } catch (...) {
      promise.set_exception(std::current_exception());
    }
  });
  long sum = 0;
  for (auto *future : {&kept, &task}) {
    try {
      sum += future->get();
    } catch (const Refused &refused) {
      sum += refused.which * 3 + unravel(refused);
    }
  }
  other.join();
  return sum + unwound;
}

static void nap() {
  auto begin = Steady::now();
  std::this_thread::sleep_for(1ms);
  if (Steady::now() - begin < 1ms)
    backwards++;
  naps++;
}

int main(int argc, char **argv) {
  long rounds = argc > 1 ? std::strtol(argv[1], nullptr, 0) : 100;
  auto begun = std::chrono::system_clock::now();
  Belt belt;
  std::vector<std::future<long>> consumers;
  for (int i = 0; i < 3; i++)
    consumers.push_back(std::async(std::launch::async, consume, std::ref(belt)));
  std::cout << "at work" << std::endl;
  long sum = 0;
  for (long round = 0; round < rounds; round++) {
    belt.put(round);
    sum = (sum * 31 + ask(round)) & 0xffffffffff;
    if (round % 16 == 0)
      nap();
    look_at_the_clock();
  }
  for (std::size_t i = 0; i < consumers.size(); i++)
    belt.put(-1);
  long taken = 0;
  for (auto &consumer : consumers)
    taken += consumer.get();
  // A task's result may be there before its thread has destroyed what is its own.
  while (destroyed < 6 * rounds + 3)
    std::this_thread::sleep_for(1ms);
  bool sane = backwards == 0 && std::chrono::system_clock::now() - begun < 24h;
  std::cout << "answer " << std::hex << sum << ' ' << taken << std::dec << ", " << destroyed << " destroyed, "
            << naps << " naps, clocks " << (sane ? "never" : "did") << " step back" << std::endl;
  return 0;
}
