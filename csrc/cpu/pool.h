// Memory kept between calls: touching fresh 4 KiB pages costs more than many a kernel call.
#pragma once
#include <stddef.h>

namespace fusedrnn::cpu {
struct Block {
  void* data;
  size_t bytes;
};
Block take_block(
    size_t bytes);  // at least that much, on a cache line (from 1 MiB on, on huge pages where the system gives them)
void give_block(Block block);  // what exceeds kMostHeldBytes goes back to the system

class Workspace {
 public:
  explicit Workspace(size_t bytes) : block_(take_block(bytes)) {}
  ~Workspace() { give_block(block_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(block_.data);
  }

 private:
  Block block_;
};
}  // namespace fusedrnn::cpu
