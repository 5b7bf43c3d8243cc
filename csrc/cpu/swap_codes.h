// Codes moved between records of a class until pairs of codes occur together as often as they should. A code that one
// record gains another one loses, so that each code stays as frequent as it was.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

namespace dpcgan::cpu {

constexpr double kHoldSizes = 1.5;        // how strongly a record that gained codes is one to lose some
constexpr double kSmallestChance = 1e-3;  // of a record to gain a code that its cluster next to never has
constexpr double kSmallestRatio = 0.05;   // of a record to keep a code that its cluster next to never has

constexpr double kLeastWeight = 1e-300;  // so that a clock is a number
constexpr size_t kCandidates = 8;        // for each record that is to gain a code that fits it
constexpr size_t kTries = 4;             // for each candidate

// Records, and which codes each has.
struct CodeBlock {
  uint8_t* has;  // (codes, records): whether a record has a code
  int64_t codes, records;
  const int64_t* classes;   // (records,)
  const int64_t* clusters;  // (records,)
  const double* weights;    // (records,): what a pair of the record counts
  const double* sizes;      // (records,): how many codes a record had at first
  const float* ratios;      // (clusters, codes): how many times as frequent a code is in a cluster
  int64_t cluster_count;
};

// Pairs of codes, and how often each is to come.
struct CodePairs {
  const int64_t* first;   // (pairs,): the rarer code
  const int64_t* second;  // (pairs,): the code that is moved
  const double* wanted;   // (pairs, classes): weight of the records of a class that have both
  int64_t pairs, class_count;
};

// Throws std::invalid_argument for a class, cluster or code that is not there, and wanted weights that are negative or
// not finite.
inline void check_values(const CodeBlock& block, const CodePairs& pairs) {
  const auto within = [](const int64_t* values, int64_t count, int64_t end, const char* what) {
    for (int64_t i = 0; i < count; ++i)
      if (values[i] < 0 || values[i] >= end) throw std::invalid_argument(what);
  };
  within(block.classes, block.records, pairs.class_count, "swap_codes: expected classes in [0, classes)");
  within(block.clusters, block.records, block.cluster_count, "swap_codes: expected clusters in [0, clusters)");
  within(pairs.first, pairs.pairs, block.codes, "swap_codes: expected codes in [0, codes)");
  within(pairs.second, pairs.pairs, block.codes, "swap_codes: expected codes in [0, codes)");
  for (int64_t i = 0; i < pairs.pairs * pairs.class_count; ++i)
    if (!(std::isfinite(pairs.wanted[i]) && pairs.wanted[i] >= 0))
      throw std::invalid_argument("swap_codes: expected finite weights of pairs that are not negative");
}

// Moves codes between the records of each class, and keeps account of what each record gained.
class CodeSwaps {
 public:
  CodeSwaps(const CodeBlock& block, int64_t class_count, uint64_t seed)
      : block_(block),
        random_(seed),
        gained_(static_cast<size_t>(block.records), 0.0),
        groups_(static_cast<size_t>(class_count)),
        members_(static_cast<size_t>(class_count)) {
    for (int64_t record = 0; record < block.records; ++record)
      members_[static_cast<size_t>(block.classes[record])].push_back(record);
  }

  // Looks at every pair once, in their order.
  void sweep(const CodePairs& pairs) {
    for (int64_t pair = 0; pair < pairs.pairs; ++pair) {
      const int64_t first = pairs.first[pair], second = pairs.second[pair];
      sort_records(first, second);
      for (size_t of = 0; of < groups_.size(); ++of)
        move(first, second, pairs.wanted[static_cast<size_t>(pair) * groups_.size() + of], members_[of], groups_[of]);
    }
  }

 private:
  using Records = std::vector<int64_t>;
  struct Group {
    Records both, first_only, second_only;
  };

  // The records of each class by which of the two codes they have, but for those with neither.
  void sort_records(int64_t first, int64_t second) {
    for (Group& group : groups_) {
      group.both.clear();
      group.first_only.clear();
      group.second_only.clear();
    }
    const uint8_t* has_first = block_.has + first * block_.records;
    const uint8_t* has_second = block_.has + second * block_.records;
    for (int64_t record = 0; record < block_.records; ++record) {
      if (!(has_first[record] | has_second[record])) continue;
      Group& group = groups_[static_cast<size_t>(block_.classes[record])];
      (has_first[record] ? (has_second[record] ? group.both : group.first_only) : group.second_only).push_back(record);
    }
  }

  // Some records of a class that have neither of two codes, more than are needed where there are so many.
  void find_neither(int64_t first, int64_t second, const Records& members, size_t needed, Records& found) {
    found.clear();
    const size_t wanted = kCandidates * (needed + 1), tries = std::min(kTries * wanted, members.size());
    const bool all = tries == members.size();
    for (size_t i = 0; i < tries && found.size() < wanted; ++i) {
      const size_t place = all ? i : static_cast<size_t>(uniform() * static_cast<double>(members.size()));
      const int64_t record = members[place];
      if (!block_.has[first * block_.records + record] && !block_.has[second * block_.records + record])
        found.push_back(record);
    }
    std::sort(found.begin(), found.end());
    found.erase(std::unique(found.begin(), found.end()), found.end());
  }

  void move(int64_t first, int64_t second, double wanted, const Records& members, Group& group) {
    double found = 0;
    for (const int64_t record : group.both) found += block_.weights[record];
    const bool more = wanted > found;
    Records& from = more ? group.second_only : group.both;
    if (from.empty() || (more && group.first_only.empty())) return;
    double mean = 0;  // weight of a pair that comes or goes
    const Records& changed = more ? group.first_only : group.both;
    for (const int64_t record : changed) mean += block_.weights[record];
    mean = std::max(mean / static_cast<double>(changed.size()), 1e-9);
    const double moves = std::min(std::fabs(wanted - found) / mean, static_cast<double>(from.size()));
    size_t count = static_cast<size_t>(moves + uniform());
    if (count == 0) return;
    if (!more) find_neither(first, second, members, count, group.first_only);
    Records& to = group.first_only;
    count = std::min({count, from.size(), to.size()});
    pick(from, count, [&](int64_t record) {
      const double kept = more ? ratio(record, second) + kSmallestRatio : 1.0;
      return std::exp(kHoldSizes * gained_[static_cast<size_t>(record)]) / kept;
    });
    pick(to, count, [&](int64_t record) {
      const double likely = more ? 1.0 : (ratio(record, second) + kSmallestChance) * block_.sizes[record];
      return std::exp(-kHoldSizes * gained_[static_cast<size_t>(record)]) * likely;
    });
    for (const int64_t record : from) change(second, record, 0);
    for (const int64_t record : to) change(second, record, 1);
  }

  void change(int64_t code, int64_t record, uint8_t has) {
    block_.has[code * block_.records + record] = has;
    gained_[static_cast<size_t>(record)] += has ? 1.0 : -1.0;
  }

  // Keeps `count` of the records, drawn without replacement in proportion to their weights: those whose exponential
  // clocks ring first (Efraimidis and Spirakis 2006).
  template <class Weight>
  void pick(Records& records, size_t count, Weight weight) {
    clocks_.clear();
    for (const int64_t record : records)
      clocks_.emplace_back(-std::log(1.0 - uniform()) / std::max(weight(record), kLeastWeight), record);
    if (count < clocks_.size())
      std::nth_element(clocks_.begin(), clocks_.begin() + static_cast<std::ptrdiff_t>(count), clocks_.end());
    records.clear();
    for (size_t i = 0; i < count; ++i) records.push_back(clocks_[i].second);
  }

  double ratio(int64_t record, int64_t code) const {
    return static_cast<double>(block_.ratios[block_.clusters[record] * block_.codes + code]);
  }

  double uniform() { return static_cast<double>(random_() >> 11) * 0x1p-53; }  // in [0, 1)

  CodeBlock block_;
  std::mt19937_64 random_;
  std::vector<double> gained_;    // codes of each record, over those that it had at first
  std::vector<Group> groups_;     // of each class, for the pair at hand
  std::vector<Records> members_;  // of each class
  std::vector<std::pair<double, int64_t>> clocks_;
};

}  // namespace dpcgan::cpu
