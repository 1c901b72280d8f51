// The stand-in for a GPU reports every fault that it claims to see, and lets a kernel without one through. No torch, no
// framework: prints what differs and returns 1.
#include <cstdio>
#include <string>

#include "host_device/device_api.h"

namespace {
using namespace fusedrnn::cuda;
namespace host = fusedrnn::host_device;
int failures = 0;
alignas(16) uint32_t global[64];

// Runs a kernel on two CTAs of 64 threads, a cluster, each with 64 bytes of shared memory.
void expect(const char* what, const char* fault, const std::function<void()>& kernel) {
  for (unsigned seed = 1; seed <= 5; seed++) {
    std::string got;
    try {
      host::launch(2, 64, 2, 64, seed, kernel);
    } catch (const std::runtime_error& error) {
      got = error.what();
    }
    if (*fault ? got.find(fault) != std::string::npos : got.empty()) continue;
    std::printf("%s, seed %u: got \"%s\", expected \"%s\"\n", what, seed, got.c_str(), fault);
    failures++;
  }
}

char* barrier_memory() { return smem_base() + 32; }

// Every CTA sends a number to the other one, which waits for it.
void exchange(int expected_bytes) {
  if (thread_id() == 0) {
    mbar_init(barrier_memory(), 1);
    mbar_init_fence();
    mbar_arrive_expect(barrier_memory(), expected_bytes);
  }
  cta_sync();
  cluster_sync();
  const int other = 1 - cluster_rank();
  if (thread_id() == 0)
    st_async4(dsm_map(smem_base(), other), dsm_map(barrier_memory(), other), uint32_t(100 + block_id()));
  mbar_wait(barrier_memory(), 0);
  if (thread_id() == 0) global[block_id()] = *reinterpret_cast<const uint32_t*>(smem_base());
  cluster_sync();
}
}  // namespace

int main() {
  expect("an exchange by st.async", "", [] { exchange(4); });
  if (global[0] != 101 || global[1] != 100) {
    std::printf("an exchange by st.async: got %u and %u\n", global[0], global[1]);
    failures++;
  }
  expect("a CTA that leaves before its peer's store", "CTA that has exited", [] {
    cluster_sync();
    if (cluster_rank() == 0 || thread_id()) return;
    unsigned looks = 0;
    for (int i = 0; i < 1000; i++) spin(looks);
    st_async4(dsm_map(smem_base(), 0), dsm_map(barrier_memory(), 0), 1);
  });
  expect("a wait for bytes that nobody sends", "livelock", [] { exchange(8); });
  expect("a barrier that one thread leaves out", "deadlock", [] {
    if (thread_id()) cta_sync();
  });
  bool exchanged = true;
  expect("numbers that lanes exchange", "", [&] {
    const int word = lane_xor(thread_id(), 5);
    const double number = lane_xor(double(thread_id()), 16);
    exchanged = exchanged && word == (thread_id() ^ 5) && number == (thread_id() ^ 16);
  });
  if (!exchanged) {
    std::printf("numbers that lanes exchange: they are others\n");
    failures++;
  }
  expect("lanes in different collectives", "different collectives", [] {
    if (lane_id() % 2)
      movmatrix(0);
    else
      warp_sync();
  });
  expect("a lane that leaves its warp", "left", [] {
    if (lane_id()) warp_sync();
  });
  expect("threads that disagree on a barrier", "disagree",
         [] { named_sync(1, warp_id() ? 64 : 32 + 64 * (lane_id() & 1)); });
  expect("a load off its alignment", "misaligned", [] { ld16_if(global + 1, true); });
  expect("more arrivals than an mbarrier counts", "more arrivals", [] {
    if (thread_id()) return;
    mbar_init(barrier_memory(), 1);
    mbar_arrive_expect(barrier_memory(), 4);
    mbar_arrive_expect(barrier_memory(), 4);
  });
  expect("a store behind the shared memory", "behind the shared memory", [] { smem_base()[64 + thread_id()] = 0; });
  host::memory()[reinterpret_cast<const char*>(global)] = 4 * 60;
  expect("a store inside the tensors", "", [] { st16_if(global + 56, uint4{0, 0, 0, 0}, true); });
  expect("a store outside the tensors", "outside the tensors", [] { st16_if(global + 60, uint4{0, 0, 0, 0}, true); });
  expect("a load in front of the tensors", "outside the tensors", [] { ld4_if(global - 1, true); });
  if (!failures) std::printf("every fault was reported\n");
  return failures != 0;
}
