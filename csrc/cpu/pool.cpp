#include "cpu/pool.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

#include "poison.h"

namespace fusedrnn::cpu {
namespace {
constexpr size_t kMostHeldBytes = size_t(256) << 20, kPageBytes = 4096, kHugePageBytes = size_t(2) << 20;

struct Pool {
  std::mutex mutex;
  std::multimap<size_t, void*> free;
  size_t held = 0;
};
Pool& pool() {
  static Pool* const pool = new Pool;  // never destroyed: tensors may outlive static storage
  return *pool;
}
}  // namespace

Block take_block(size_t bytes) {
  Pool& p = pool();
  bytes = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  Block block{nullptr, bytes};
  {
    const std::lock_guard<std::mutex> lock(p.mutex);
    const auto it = p.free.lower_bound(bytes);
    if (it != p.free.end() && it->first <= bytes + bytes / 4 + (size_t(64) << 10)) {
      block = {it->second, it->first};
      p.held -= it->first;
      p.free.erase(it);
    }
  }
  if (!block.data) {
    const size_t align = bytes >= (size_t(1) << 20) ? kHugePageBytes : kPageBytes;
    if (posix_memalign(&block.data, align, bytes)) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (align > kPageBytes) madvise(block.data, bytes, MADV_HUGEPAGE);
#endif
  }
  if (poisoned()) std::memset(block.data, kPoison, block.bytes);
  return block;
}

void give_block(Block block) {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  if (p.held + block.bytes > kMostHeldBytes) return std::free(block.data);
  p.held += block.bytes;
  p.free.emplace(block.bytes, block.data);
}
}  // namespace fusedrnn::cpu
