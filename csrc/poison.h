// FUSEDRNN_POISON, for tests: fresh memory, of outputs and of scratch, is filled with NaN.
#pragma once
#include <cstdlib>

namespace fusedrnn {
constexpr int kPoison = 0xff;  // in every byte: a NaN in every format

inline bool poisoned() {  // asked once
  static const bool on = std::getenv("FUSEDRNN_POISON") != nullptr;
  return on;
}
}  // namespace fusedrnn
