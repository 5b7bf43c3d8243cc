// How finely parallel loops are cut.
#pragma once

#include <algorithm>
#include <cstdint>

namespace dpcgan::cpu {

constexpr int64_t kTaskWork = 50000;  // multiply-adds of one task, about ten microseconds: waking a thread then pays

// Items of a loop that one task should take, for at::parallel_for.
inline int64_t grain_size(int64_t work_per_item) {
  return std::max<int64_t>(1, kTaskWork / std::max<int64_t>(1, work_per_item));
}

}  // namespace dpcgan::cpu
