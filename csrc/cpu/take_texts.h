// Texts of a column in another order. Rows sorted into buckets lie anywhere in memory; prefetching them is several
// times as fast as waiting for each.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace dpcgan::cpu {

constexpr int64_t kTextAhead = 16;  // texts that are on their way into the cache
constexpr int64_t kShortText = 16;  // bytes; longer ones are rare in tables, and copied one at a time

struct TextColumn {
  const char* bytes;
  int64_t size;           // of `bytes`
  const int32_t* starts;  // (count + 1,): text i is bytes[starts[i] : starts[i + 1]]
  int64_t count;
};

// Where each of the texts begins in the column, (rows,), while `starts`, (rows + 1,), gets where it begins among those
// that are taken, and the end. Throws std::invalid_argument for rows that are not there, and starts that do not fit.
inline std::vector<int32_t> text_starts(const TextColumn& column, const int64_t* rows, int64_t count, int32_t* starts) {
  std::vector<int32_t> begins(static_cast<size_t>(count));
  int64_t end = 0;
  starts[0] = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (i + kTextAhead < count && 0 <= rows[i + kTextAhead] && rows[i + kTextAhead] < column.count)
      __builtin_prefetch(column.starts + rows[i + kTextAhead]);
    if (rows[i] < 0 || rows[i] >= column.count) throw std::invalid_argument("take_texts: expected rows in [0, N)");
    const int64_t first = column.starts[rows[i]], last = column.starts[rows[i] + 1];
    if (first < 0 || last < first || last > column.size)
      throw std::invalid_argument("take_texts: expected starts that rise within the bytes");
    end += last - first;
    if (end > INT32_MAX) throw std::invalid_argument("take_texts: expected less than 2 GiB of texts");
    begins[static_cast<size_t>(i)] = static_cast<int32_t>(first);
    starts[i + 1] = static_cast<int32_t>(end);
  }
  return begins;
}

// Copies the texts that begin at `begins` to `starts` in `out`, which has starts[begins.size()] bytes.
inline void copy_texts(const TextColumn& column, const std::vector<int32_t>& begins, const int32_t* starts, char* out) {
  const int64_t count = static_cast<int64_t>(begins.size());
  for (int64_t i = 0; i < count; ++i) {
    if (i + kTextAhead < count) __builtin_prefetch(column.bytes + begins[i + kTextAhead]);
    const int64_t size = starts[i + 1] - starts[i];
    // What is copied beyond the end of a short text is overwritten by the next one.
    if (size <= kShortText && begins[i] + kShortText <= column.size && starts[i] + kShortText <= starts[count])
      std::memcpy(out + starts[i], column.bytes + begins[i], kShortText);
    else
      std::memcpy(out + starts[i], column.bytes + begins[i], static_cast<size_t>(size));
  }
}

}  // namespace dpcgan::cpu
