// bfloat16 as the kernels read it. It is widened where it is read, which is exact; nothing is ever rounded to it.
#pragma once

#include "host_device.h"

namespace dpcgan {

struct BFloat16 {
  uint16_t bits;

  DPCGAN_HOST_DEVICE operator float() const { return bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

}  // namespace dpcgan
