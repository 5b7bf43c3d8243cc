#include "simd.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace dpcgan::cpu {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512"};

SimdLevel level_from_name(const std::string& name) {
  for (int level = 0; level < 3; ++level)
    if (name == kNames[level]) return static_cast<SimdLevel>(level);
  throw std::invalid_argument("simd level: expected one of portable, avx2, avx512, got " + name);
}

std::atomic<int>& current_level() {
  static std::atomic<int> level = [] {
    const char* forced = std::getenv("DPCGAN_SIMD");
    if (forced == nullptr) return static_cast<int>(detected_simd_level());
    const SimdLevel wanted = level_from_name(forced);
    return static_cast<int>(wanted < detected_simd_level() ? wanted : detected_simd_level());
  }();
  return level;
}

}  // namespace

SimdLevel detected_simd_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return SimdLevel::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return SimdLevel::kAvx2;
#endif
  return SimdLevel::kPortable;
}

SimdLevel simd_level() { return static_cast<SimdLevel>(current_level().load(std::memory_order_relaxed)); }

const char* simd_level_name(SimdLevel level) { return kNames[static_cast<int>(level)]; }

void set_simd_level(const std::string& name) {
  const SimdLevel wanted = level_from_name(name);
  if (wanted > detected_simd_level())
    throw std::invalid_argument("simd level: this CPU offers at most " +
                                std::string(simd_level_name(detected_simd_level())) + ", got " + name);
  current_level().store(static_cast<int>(wanted), std::memory_order_relaxed);
}

}  // namespace dpcgan::cpu
