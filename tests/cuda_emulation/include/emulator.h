// Runs CUDA kernels on the CPU, one block after another, each thread of a block a fiber.
//
// Between two barriers the threads of a block run in an order drawn from a seed, as do the blocks, so a missing barrier
// gives different results for different seeds. Shared memory is filled with NaN before each block, and a barrier that
// not all threads reach, or a shuffle that reads a thread that takes no part, fails the launch with a message.
//
// Not covered: sync over the grid, tensor cores, asynchronous copies, streams (work runs at once), the memory model
// beyond barriers, and rounding that depends on fused multiply-add.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace cuda_emulation {

struct Extent {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;

  size_t count() const { return static_cast<size_t>(x) * y * z; }
};

// Runs `thread_body` once for each thread of each block. Returns what went wrong, or an empty string.
std::string run_grid(Extent grid, Extent block, size_t dynamic_shared_bytes, const std::function<void()>& thread_body);

// Called by the threads of a kernel.
void wait_for_block();
void wait_for_warp(unsigned mask);
unsigned lane();
// Publishes `bits` to the warp and returns what `source_lane` published, once all lanes of `mask` have done so.
uint64_t exchange(unsigned mask, uint64_t bits, unsigned source_lane);
// Bit i is set where lane i of `mask` called with true.
unsigned ballot(unsigned mask, bool vote);
// The number of threads of the block that called with true.
int count_in_block(bool vote);
unsigned char* dynamic_shared_memory();

}  // namespace cuda_emulation

extern "C" {
// seed: of the order of threads and blocks  max_blocks: a limit on the blocks of a grid, or 0 for none. The project's
// kernels stride over their grid, so a limit must not change a result.
void emulation_configure(uint64_t seed, unsigned max_blocks);
// Launches since the last call, so that a test can tell that kernels ran.
int64_t emulation_take_launch_count();
}
