// A search engine's inverted index in C++: threads index generated documents into unordered maps, which
// are merged, and then answer queries; bad queries throw. Uses std::thread, futures, containers, streams,
// exceptions and thread_local objects as ordinary programs do.
//
// usage: inverted MEMORY_MIB QUERIES THREADS
// Documents and queries follow from their numbers, and lists are sorted before they are searched, so the
// answer does not depend on the number of threads.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <future>
#include <iomanip>
#include <iostream>
#include <iterator>
#include <mutex>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

namespace {

constexpr std::uint64_t kWordsPerDocument = 100, kVocabulary = 50'000, kShards = 64;
// What a posting costs with its list's slack, by measurement.
constexpr std::uint64_t kBytesPerDocument = 1000;

std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

class BadQuery : public std::runtime_error {
public:
  using std::runtime_error::runtime_error;
};

// Some words are much more frequent than others.
std::string word(std::uint64_t random) {
  std::uint64_t rank = kVocabulary >> (random % 12);
  rank = mix(random) % (rank ? rank : 1);
  std::string text;
  for (std::uint64_t x = mix(rank); text.size() < 4 + rank % 9; x /= 26)
    text.push_back(static_cast<char>('a' + x % 26));
  return text + std::to_string(rank % 7);
}

std::string document(std::uint64_t number) {
  std::ostringstream out;
  for (std::uint64_t i = 0; i < kWordsPerDocument; i++)
    out << word(mix(number * kWordsPerDocument + i)) << (i % 10 == 9 ? ".\n" : " ");
  return out.str();
}

// How much each thread has tokenised; counted together when the thread ends.
std::atomic<std::uint64_t> tokens_of_all;
struct Counter {
  std::uint64_t tokens = 0;
  ~Counter() { tokens_of_all += tokens; }
};
thread_local Counter counter;

class Index {
public:
  void add(std::uint64_t number) {
    std::istringstream text(document(number));
    std::string token;
    while (text >> token) {
      counter.tokens++;
      while (!token.empty() && token.back() == '.')
        token.pop_back();
      Shard &shard = shard_of(token);
      std::lock_guard<std::mutex> hold(shard.lock);
      std::vector<std::uint32_t> &list = shard.lists[token];
      if (list.empty() || list.back() != number)
        list.push_back(static_cast<std::uint32_t>(number));
    }
  }

  void sort() {
    for (Shard &shard : shards_)
      for (auto &entry : shard.lists) {
        std::sort(entry.second.begin(), entry.second.end());
        entry.second.erase(std::unique(entry.second.begin(), entry.second.end()), entry.second.end());
      }
  }

  const std::vector<std::uint32_t> &find(const std::string &token) const {
    const auto &lists = shards_[std::hash<std::string>{}(token) % kShards].lists;
    auto found = lists.find(token);
    if (found == lists.end())
      throw BadQuery("no document has " + token);
    return found->second;
  }

  std::uint64_t digest() const {
    std::uint64_t sum = 0;
    for (const Shard &shard : shards_)
      for (const auto &entry : shard.lists) {
        std::uint64_t hash = 0;
        for (char c : entry.first)
          hash = hash * 31 + static_cast<unsigned char>(c);
        for (std::uint32_t number : entry.second)
          hash = mix(hash ^ number);
        sum += hash; // whatever order the map has
      }
    return sum;
  }

private:
  struct Shard {
    std::mutex lock;
    std::unordered_map<std::string, std::vector<std::uint32_t>> lists;
  };
  Shard &shard_of(const std::string &token) {
    return shards_[std::hash<std::string>{}(token) % kShards];
  }
  Shard shards_[kShards];
};

// "a AND b AND c": how many documents have them all.
std::uint64_t answer(const Index &index, const std::string &query) {
  std::istringstream words(query);
  std::string token, joint;
  words >> token;
  std::vector<std::uint32_t> result = index.find(token);
  while (words >> joint) {
    if (joint != "AND" || !(words >> token))
      throw std::invalid_argument("not a query: " + query);
    std::vector<std::uint32_t> both;
    const auto &list = index.find(token);
    std::set_intersection(result.begin(), result.end(), list.begin(), list.end(), std::back_inserter(both));
    result.swap(both);
  }
  return std::accumulate(result.begin(), result.end(), std::uint64_t{result.size()});
}

std::string query(std::uint64_t number) {
  std::string text = word(mix(number ^ 0x1234567));
  if (number % 3 == 0)
    text += " AND " + word(mix(number ^ 0x7654321));
  if (number % 11 == 0)
    text += " AND";
  if (number % 13 == 0)
    text = "nowhere AND " + text;
  return text;
}

struct Tally {
  std::uint64_t sum = 0, absent = 0, malformed = 0;
};

Tally search(const Index &index, std::uint64_t from, std::uint64_t to) {
  Tally tally;
  for (std::uint64_t i = from; i < to; i++) {
    try {
      tally.sum += mix(i) * answer(index, query(i));
    } catch (const BadQuery &) {
      tally.absent++;
    } catch (const std::exception &) {
      tally.malformed++;
    }
  }
  return tally;
}

int run(std::uint64_t mib, std::uint64_t queries, unsigned threads) {
  const std::uint64_t documents = (mib << 20) / kBytesPerDocument;
  Index index;
  std::atomic<std::uint64_t> next{0};
  std::vector<std::thread> workers;
  for (unsigned i = 0; i < threads; i++)
    workers.emplace_back([&] {
      for (std::uint64_t number; (number = next++) < documents;)
        index.add(number);
    });
  for (std::thread &worker : workers)
    worker.join();
  index.sort();
  std::cout << "indexed: " << documents << " documents" << std::endl;
  Tally all;
  for (std::uint64_t part = 0; part < 10; part++) {
    const std::uint64_t from = queries * part / 10, to = queries * (part + 1) / 10;
    std::vector<std::future<Tally>> answers;
    for (unsigned i = 0; i < threads; i++)
      answers.push_back(std::async(std::launch::async, search, std::cref(index),
                                   from + (to - from) * i / threads, from + (to - from) * (i + 1) / threads));
    for (auto &part_of : answers) {
      const Tally tally = part_of.get();
      all.sum += tally.sum;
      all.absent += tally.absent;
      all.malformed += tally.malformed;
    }
    std::cout << to << " of " << queries << " queries" << std::endl;
  }
  const bool right = tokens_of_all == documents * kWordsPerDocument;
  std::cout << "answer: " << all.absent << " words were absent, " << all.malformed
            << " queries malformed, digest " << std::hex << std::setfill('0') << std::setw(16)
            << (all.sum ^ index.digest()) << (right ? "" : ", TOKENS LOST") << std::endl;
  return right ? 0 : 3;
}

} // namespace

int main(int argc, char **argv) {
  try {
    const auto number = [&](int at, const char *otherwise) {
      return std::stoull(argc > at ? argv[at] : otherwise);
    };
    return run(number(1, "256"), number(2, "100000"),
               std::max(1u, static_cast<unsigned>(number(3, "4"))));
  } catch (const std::exception &error) {
    std::cerr << "inverted: " << error.what() << '\n';
    return 2;
  }
}
