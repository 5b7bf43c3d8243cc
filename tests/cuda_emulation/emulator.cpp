#include "emulator.h"

#include <dlfcn.h>
#include <link.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_emulation {
namespace {

constexpr unsigned kWarp = 32;
constexpr size_t kMaxThreads = 1024;            // of a block
constexpr size_t kMaxSharedBytes = 227 * 1024;  // of a block, on compute capability 9.0
constexpr size_t kStackBytes = 64 * 1024;       // of a fiber; the sanitizer widens frames
constexpr unsigned char kPoison = 0xff;         // NaN in float and double, -1 in integers

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

// A stack of its own. Entered once by setcontext; then _setjmp and _longjmp switch, which make no system call.
struct Fiber {
  std::unique_ptr<unsigned char[]> stack;
  ucontext_t entry;
  jmp_buf resume;
  bool entered = false;
  State state = State::kDone;
  unsigned mask = 0;       // lanes that the warp barrier waits for
  uint64_t published = 0;  // for exchange()
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
#endif
};

struct Emulator {
  std::vector<std::unique_ptr<Fiber>> fibers;  // kept from block to block
  size_t threads = 0;                          // of the current block
  size_t current = 0;
  jmp_buf scheduler;
  const std::function<void()>* body = nullptr;
  std::unique_ptr<unsigned char[]> dynamic_shared;
  std::vector<int> votes;
  std::string failure;
  std::mt19937_64 order{0};
  unsigned max_blocks = 0;
  int64_t launches = 0;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  const void* main_stack = nullptr;
  size_t main_stack_bytes = 0;
#endif
};

Emulator& emulator() {
  static Emulator instance;
  return instance;
}

Fiber& current_fiber() { return *emulator().fibers[emulator().current]; }

// The sanitizer must know which stack is in use; elsewhere these do nothing.
void leave_scheduler([[maybe_unused]] Emulator& e, [[maybe_unused]] Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&e.fake_stack, fiber.stack.get(), kStackBytes);
#endif
}
void reach_scheduler([[maybe_unused]] Emulator& e) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(e.fake_stack, nullptr, nullptr);
#endif
}
void leave_fiber([[maybe_unused]] Emulator& e, [[maybe_unused]] Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fiber.fake_stack, e.main_stack, e.main_stack_bytes);
#endif
}
void reach_fiber([[maybe_unused]] Emulator& e, [[maybe_unused]] Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &e.main_stack, &e.main_stack_bytes);
#endif
}

void place(size_t thread) {
  const unsigned t = static_cast<unsigned>(thread);
  threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
}

// Hands control back to the scheduler until the fiber is ready again.
void yield(State state) {
  Emulator& e = emulator();
  Fiber& fiber = current_fiber();
  fiber.state = state;
  if (_setjmp(fiber.resume) == 0) {
    leave_fiber(e, fiber);
    _longjmp(e.scheduler, 1);
  }
  reach_fiber(e, fiber);
}

void fiber_main() {
  reach_fiber(emulator(), current_fiber());
  for (;;) {
    (*emulator().body)();
    yield(State::kDone);
  }
}

void run_fiber(size_t thread) {
  Emulator& e = emulator();
  e.current = thread;
  place(thread);
  Fiber& fiber = *e.fibers[thread];
  if (_setjmp(e.scheduler) == 0) {
    leave_scheduler(e, fiber);
    if (fiber.entered) _longjmp(fiber.resume, 1);
    fiber.entered = true;
    setcontext(&fiber.entry);
  }
  reach_scheduler(e);
}

std::unique_ptr<Fiber> make_fiber() {
  auto fiber = std::make_unique<Fiber>();
  fiber->stack.reset(new unsigned char[kStackBytes]);
  getcontext(&fiber->entry);
  fiber->entry.uc_stack.ss_sp = fiber->stack.get();
  fiber->entry.uc_stack.ss_size = kStackBytes;
  fiber->entry.uc_link = nullptr;
  makecontext(&fiber->entry, fiber_main, 0);
  return fiber;
}

std::string where(size_t thread) {
  return "block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
         std::to_string(blockIdx.z) + "), thread " + std::to_string(thread);
}

// Lets a warp go on if all lanes that `thread` waits for have come. Lanes beyond the block do not exist.
void release_warp(size_t thread) {
  Emulator& e = emulator();
  const unsigned mask = e.fibers[thread]->mask;
  const size_t first = thread / kWarp * kWarp, end = std::min(first + kWarp, e.threads);
  for (size_t t = first; t < end; ++t) {
    const Fiber& fiber = *e.fibers[t];
    if ((mask >> (t - first) & 1) == 0) continue;
    if (fiber.state == State::kDone) e.failure = where(t) + ": left the kernel while its warp waits for it";
    if (fiber.state != State::kAtWarpBarrier) return;
    if (fiber.mask != mask)
      e.failure = where(t) + ": waits for other lanes of its warp than thread " + std::to_string(thread);
  }
  for (size_t t = first; t < end; ++t)
    if ((mask >> (t - first) & 1) != 0) e.fibers[t]->state = State::kReady;
}

void release_block() {
  Emulator& e = emulator();
  size_t waiting = 0, done = 0, first_done = 0;
  for (size_t t = 0; t < e.threads; ++t) {
    waiting += e.fibers[t]->state == State::kAtBlockBarrier;
    if (e.fibers[t]->state == State::kDone) {
      first_done = t;
      ++done;
    }
  }
  if (waiting == e.threads) {
    for (size_t t = 0; t < e.threads; ++t) e.fibers[t]->state = State::kReady;
  } else if (done > 0) {
    e.failure = where(first_done) + ": left the kernel while others wait at a barrier";
  } else {
    e.failure = where(0) + ": deadlock, threads of the block wait at different barriers";
  }
}

// Threads have priorities, and the first that is ready runs until it waits. Priorities are drawn anew now and then:
// held, they let one warp run far ahead of another; redrawn, they mix threads finely.
void run_block() {
  Emulator& e = emulator();
  std::vector<size_t> priority(e.threads);
  for (size_t t = 0; t < e.threads; ++t) priority[t] = t;
  size_t running = e.threads;
  while (running > 0 && e.failure.empty()) {
    if (e.order() % (2 * e.threads) < 2) std::shuffle(priority.begin(), priority.end(), e.order);
    const auto next =
        std::find_if(priority.begin(), priority.end(), [&](size_t t) { return e.fibers[t]->state == State::kReady; });
    if (next == priority.end()) {
      release_block();
      std::shuffle(priority.begin(), priority.end(), e.order);
      continue;
    }
    run_fiber(*next);
    if (e.fibers[*next]->state == State::kAtWarpBarrier) release_warp(*next);
    running -= e.fibers[*next]->state == State::kDone;
  }
}

thread_local volatile char thread_local_anchor;

// Fills the thread-local variables of this library, that is, the static shared memory of all kernels.
void poison_static_shared() {
  thread_local_anchor = 0;  // the first access allocates them
  Dl_info self;
  dladdr(reinterpret_cast<const void*>(&emulation_configure), &self);
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* base) {
        if (reinterpret_cast<void*>(info->dlpi_addr) != base) return 0;
        for (int i = 0; i < info->dlpi_phnum; ++i)
          if (info->dlpi_phdr[i].p_type == PT_TLS)
            std::memset(info->dlpi_tls_data, kPoison, info->dlpi_phdr[i].p_memsz);
        return 1;
      },
      self.dli_fbase);
}

std::vector<unsigned> shuffled(unsigned count, std::mt19937_64& order) {
  std::vector<unsigned> indices(count);
  for (unsigned i = 0; i < count; ++i) indices[i] = i;
  std::shuffle(indices.begin(), indices.end(), order);
  return indices;
}

}  // namespace

std::string run_grid(Extent grid, Extent block, size_t dynamic_shared_bytes, const std::function<void()>& thread_body) {
  Emulator& e = emulator();
  if (grid.count() == 0) return "a grid of no blocks";
  if (block.count() == 0 || block.count() > kMaxThreads)
    return "a block of " + std::to_string(block.count()) + " threads, expected 1 to " + std::to_string(kMaxThreads);
  if (dynamic_shared_bytes > kMaxSharedBytes)
    return std::to_string(dynamic_shared_bytes) + " bytes of shared memory, expected at most " +
           std::to_string(kMaxSharedBytes);
  if (e.max_blocks != 0) grid.x = std::min(grid.x, e.max_blocks);
  ++e.launches;
  gridDim = dim3(grid.x, grid.y, grid.z);
  blockDim = dim3(block.x, block.y, block.z);
  e.threads = block.count();
  e.body = &thread_body;
  e.votes.assign(e.threads, 0);
  while (e.fibers.size() < e.threads) e.fibers.push_back(make_fiber());
  for (unsigned z : shuffled(grid.z, e.order))
    for (unsigned y : shuffled(grid.y, e.order))
      for (unsigned x : shuffled(grid.x, e.order)) {
        blockIdx = {x, y, z};
        e.dynamic_shared.reset(new unsigned char[dynamic_shared_bytes]);  // its bounds are the sanitizer's to check
        std::memset(e.dynamic_shared.get(), kPoison, dynamic_shared_bytes);
        poison_static_shared();
        for (size_t t = 0; t < e.threads; ++t) e.fibers[t]->state = State::kReady;
        run_block();
        if (!e.failure.empty()) {
          e.fibers.clear();  // some stand in the middle of the kernel
          return std::exchange(e.failure, "");
        }
      }
  return "";
}

void wait_for_block() { yield(State::kAtBlockBarrier); }

void wait_for_warp(unsigned mask) {
  current_fiber().mask = mask;
  yield(State::kAtWarpBarrier);
}

unsigned lane() { return static_cast<unsigned>(emulator().current % kWarp); }

uint64_t exchange(unsigned mask, uint64_t bits, unsigned source_lane) {
  Emulator& e = emulator();
  const size_t source = e.current / kWarp * kWarp + source_lane;
  current_fiber().published = bits;
  wait_for_warp(mask);
  if (source >= e.threads || (mask >> source_lane & 1) == 0)
    e.failure =
        where(e.current) + ": reads lane " + std::to_string(source_lane) + ", which takes no part in the shuffle";
  const uint64_t result = source < e.threads ? e.fibers[source]->published : 0;
  wait_for_warp(mask);  // nobody publishes again before all have read
  return result;
}

unsigned ballot(unsigned mask, bool vote) {
  Emulator& e = emulator();
  const size_t first = e.current / kWarp * kWarp;
  current_fiber().published = vote ? 1 : 0;
  wait_for_warp(mask);
  unsigned result = 0;
  for (unsigned l = 0; l < kWarp && first + l < e.threads; ++l)
    if ((mask >> l & 1) != 0 && e.fibers[first + l]->published != 0) result |= 1u << l;
  wait_for_warp(mask);
  return result;
}

int count_in_block(bool vote) {
  Emulator& e = emulator();
  e.votes[e.current] = vote ? 1 : 0;
  wait_for_block();
  int count = 0;
  for (size_t t = 0; t < e.threads; ++t) count += e.votes[t];
  wait_for_block();
  return count;
}

unsigned char* dynamic_shared_memory() { return emulator().dynamic_shared.get(); }

}  // namespace cuda_emulation

void emulation_configure(uint64_t seed, unsigned max_blocks) {
  cuda_emulation::emulator().order.seed(seed);
  cuda_emulation::emulator().max_blocks = max_blocks;
}

int64_t emulation_take_launch_count() { return std::exchange(cuda_emulation::emulator().launches, 0); }
