#include "cpu/amx.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace fusedrnn::cpu {
namespace {
constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
constexpr unsigned kAmxBf16 = 1U << 22, kAmxTile = 1U << 24, kAvx512Bf16 = 1U << 5;  // leaf 7: EDX; EAX of subleaf 1

bool processor_has_it() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kAmxBf16) || !(d & kAmxTile)) return false;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kAvx512Bf16);
}
}  // namespace

bool runs_amx() {
  static const bool granted = processor_has_it() && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}
}  // namespace fusedrnn::cpu
#else
namespace fusedrnn::cpu {
bool runs_amx() { return false; }
}  // namespace fusedrnn::cpu
#endif
