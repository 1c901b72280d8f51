// Measures the constants of the CUDA planner's cost model, one CSV line each. `make gpu STAGE=micro` builds and runs it.
//
// Computes: cycles of a tensor-core product, of barriers, of st.async between CTAs of a cluster, of an exchange through
//   L2; how many clusters fit; bytes a second of main memory.
// Mapping: a kernel a constant; every loop is timed by clock64 in one thread and divided by its passes.
// Memory: nothing is kept; all buffers are the process's own.
// Synchronisation: kernels of one device one after the other; grids are launched cooperatively.
// Requires: compute capability 9.0 or later.
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "micro: %s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

void report(const char* what, double value, const char* unit) {
  std::printf("%s,%.4g,%s\n", what, value, unit);
  std::fflush(stdout);
}

__device__ long long now() {
  long long clock;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(clock));
  return clock;
}
__device__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
__device__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ void barrier_init(void* barrier) {
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;" ::"r"(shared_address(barrier))
      : "memory");
}
__device__ void barrier_expect(void* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
__device__ void barrier_wait(void* barrier, int parity) {
  asm volatile("{\n.reg .pred p;\nW:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra W;\n}" ::"r"(
                   shared_address(barrier)),
               "r"(parity)
               : "memory");
}
__device__ uint32_t mapped(const void* pointer, int rank) {
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(shared_address(pointer)), "r"(rank));
  return remote;
}
__device__ void store_remote(uint32_t target, uint32_t barrier, float value) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%1,%1,%1}, [%2];" ::"r"(target),
               "f"(value), "r"(barrier)
               : "memory");
}

template <int CHAINS>
__global__ void mma_rate(long long* out, int passes) {
  float c[8][4] = {};
  const uint32_t a = threadIdx.x;
  __syncthreads();
  const long long begin = now();
  for (int i = 0; i < passes; ++i)
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      float (&sum)[4] = c[k % CHAINS];
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%5,%6}, {%0,%1,%2,%3};"
          : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
          : "r"(a), "r"(i), "r"(k));
    }
  __syncthreads();
  const long long end = now();
  float sum = 0;
  for (const auto& row : c) sum += row[0] + row[1] + row[2] + row[3];
  if (threadIdx.x == 0) out[0] = end - begin + (sum == 1234.f);  // or nothing would need the products
}

__global__ void cta_barrier(long long* out, int passes) {
  __syncthreads();
  const long long begin = now();
  for (int i = 0; i < passes; ++i) __syncthreads();
  if (threadIdx.x == 0) out[0] = now() - begin;
}

__global__ void cluster_barrier(long long* out, int passes) {
  cluster_sync();
  const long long begin = now();
  for (int i = 0; i < passes; ++i) cluster_sync();
  if (threadIdx.x == 0 && blockIdx.x == 0) out[0] = now() - begin;
}

__global__ void remote_latency(long long* out, int passes, int peer) {  // ranks 0 and peer hand each other 512 bytes
  extern __shared__ __align__(128) char smem[];
  auto* barrier = reinterpret_cast<uint64_t*>(smem + 1024);
  const int rank = static_cast<int>(cluster_rank()), lane = static_cast<int>(threadIdx.x);
  if (lane == 0) {
    barrier_init(barrier);
    barrier_expect(barrier, 512);
  }
  __syncthreads();
  cluster_sync();
  const long long begin = now();
  if (rank == 0 || rank == peer) {
    const int other = rank == 0 ? peer : 0;
    for (int i = 0; i < passes; ++i) {
      if ((i & 1) == (rank == 0 ? 0 : 1)) {
        store_remote(mapped(smem + lane * 16, other), mapped(barrier, other), static_cast<float>(i));
      } else {
        barrier_wait(barrier, (i >> 1) & 1);
        if (lane == 0) barrier_expect(barrier, 512);
        __syncwarp();
      }
    }
  }
  const long long end = now();
  cluster_sync();
  if (rank == 0 && lane == 0) out[0] = end - begin;
}

// Every warp of every CTA sends 512 * per_warp bytes to every CTA: the exchange of the cluster kernels.
__global__ void all_gather(long long* out, int passes, int ctas, int per_warp) {
  extern __shared__ __align__(128) char smem[];
  const int warps = static_cast<int>(blockDim.x / 32), warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x & 31), rank = static_cast<int>(cluster_rank());
  const int bytes = ctas * warps * per_warp * 512;
  auto* barrier = reinterpret_cast<uint64_t*>(smem + 2 * bytes);
  if (threadIdx.x == 0)
    for (int i = 0; i < 2; ++i) {
      barrier_init(barrier + i);
      barrier_expect(barrier + i, bytes);
    }
  __syncthreads();
  cluster_sync();
  const long long begin = now();
  for (int i = 0; i < passes; ++i) {
    const int half = i & 1;
    for (int cta = 0; cta < ctas; ++cta)
      for (int j = 0; j < per_warp; ++j) {
        const char* slot = smem + half * bytes + ((rank * warps + warp) * per_warp + j) * 512 + lane * 16;
        store_remote(mapped(slot, cta), mapped(barrier + half, cta), static_cast<float>(i));
      }
    barrier_wait(barrier + half, (i >> 1) & 1);
    // the next bytes of this half are sent only after all have seen the other one, so after this
    if (threadIdx.x == 0) barrier_expect(barrier + half, bytes);
    __syncthreads();
  }
  const long long end = now();
  cluster_sync();
  if (threadIdx.x == 0 && blockIdx.x == 0) out[0] = end - begin;
}

// Every CTA writes words * 16 bytes a step and reads those of all; `rows` is filled with ones where the data are the flag.
__global__ void grid_exchange(long long* out, uint32_t* rows, uint32_t* flags, int passes, int words, bool sentinel) {
  const auto ctas = static_cast<int>(gridDim.x), self = static_cast<int>(blockIdx.x),
             threads = static_cast<int>(blockDim.x);
  const auto thread = static_cast<int>(threadIdx.x);
  const long long begin = now();
  for (int i = 0; i < passes; ++i) {
    uint32_t* row = rows + static_cast<size_t>(i) * ctas * words * 4;
    for (int k = thread; k < words * 2; k += threads)
      asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1,%2};" ::"l"(row + self * words * 4 + 2 * k), "r"(i), "r"(k)
                   : "memory");
    if (!sentinel) {
      __syncthreads();
      if (thread == 0) asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flags + self), "r"(i + 1) : "memory");
      for (int cta = thread; thread < 32 && cta < ctas; cta += 32) {
        uint32_t seen = 0;
        while (seen < static_cast<uint32_t>(i) + 1)
          asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flags + cta) : "memory");
      }
      __syncthreads();
    }
    for (int k = thread; k < ctas * words; k += threads) {
      uint32_t x, y, z, w;
      do
        asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(x), "=r"(y), "=r"(z), "=r"(w)
                     : "l"(row + 4 * k)
                     : "memory");
      while (sentinel && (x == ~0u || y == ~0u || z == ~0u || w == ~0u));
      if (x == 0xdeadbeef) out[1] = 1;
    }
    __syncthreads();
  }
  if (thread == 0 && self == 0) out[0] = now() - begin;
}

__global__ void copy(const float4* from, float4* to, size_t count) {
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) to[i] = from[i];
}

long long* clocks;

double cycles(int passes) {
  check(cudaGetLastError(), "launch");
  check(cudaDeviceSynchronize(), "kernel");
  long long found = 0;
  check(cudaMemcpy(&found, clocks, sizeof found, cudaMemcpyDeviceToHost), "copy");
  return static_cast<double>(found) / passes;
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int ctas, int threads, int cluster, size_t smem, Arguments... arguments) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(smem)),
        "shared memory");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster size");
  cudaLaunchAttribute attribute{};
  attribute.id = cluster ? cudaLaunchAttributeClusterDimension : cudaLaunchAttributeCooperative;
  if (cluster) {
    attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  } else {
    attribute.val.cooperative = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(ctas));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = smem;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "launch");
}

int resident_clusters(int cluster, size_t smem) {
  check(cudaFuncSetAttribute(all_gather, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(smem)),
        "shared memory");
  check(cudaFuncSetAttribute(all_gather, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster size");
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(cluster));
  config.blockDim = dim3(256);
  config.dynamicSmemBytes = smem;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int found = 0;
  check(cudaOccupancyMaxActiveClusters(&found, all_gather, &config), "clusters");
  return found;
}

void products() {
  for (const int warps : {4, 8, 16}) {
    const auto show = [&](int chains) {
      char name[64];
      std::snprintf(name, sizeof name, "mma m16n8k16 bf16 %d warps %d chains", warps, chains);
      report(name, cycles(8000) / (warps / 4.0), "cycles a product and sub-partition");
    };
    mma_rate<1><<<1, warps * 32>>>(clocks, 1000);
    show(1);
    mma_rate<4><<<1, warps * 32>>>(clocks, 1000);
    show(4);
    mma_rate<8><<<1, warps * 32>>>(clocks, 1000);
    show(8);
  }
}

void clusters(size_t smem_bytes) {
  char name[96];
  for (const int cluster : {2, 4, 8, 16}) {
    std::snprintf(name, sizeof name, "clusters of %d resident", cluster);
    const int resident = resident_clusters(cluster, smem_bytes);
    report(name, resident, "clusters");
    if (resident < 1) continue;
    launch(cluster_barrier, cluster, 256, cluster, 0, clocks, 1000);
    std::snprintf(name, sizeof name, "cluster barrier %d CTAs", cluster);
    report(name, cycles(1000), "cycles");
    launch(remote_latency, cluster, 32, cluster, 4096, clocks, 2000, cluster - 1);
    std::snprintf(name, sizeof name, "st.async one way cluster of %d", cluster);
    report(name, cycles(2000), "cycles");
    for (const int per_warp : {1, 2, 4}) {
      const int bytes = cluster * 8 * per_warp * 512;
      if (2 * static_cast<size_t>(bytes) + 64 > smem_bytes) continue;
      for (const int count : {1, resident}) {
        launch(all_gather, cluster * count, 256, cluster, 2 * bytes + 64, clocks, 1000, cluster, per_warp);
        const double taken = cycles(1000);
        std::snprintf(name, sizeof name, "all-gather %d B cluster of %d %d clusters", bytes, cluster, count);
        report(name, taken, "cycles a step");
        report(name, bytes / taken, "bytes a cycle and CTA");
      }
    }
  }
}

void grids(int sms) {
  constexpr int passes = 500;
  constexpr size_t bytes = size_t{512} << 20;
  uint32_t *rows, *flags;
  check(cudaMalloc(&rows, bytes), "memory");
  check(cudaMalloc(&flags, 4096), "memory");
  for (const int ctas : {32, 64, 128})
    for (const int words : {1, 16, 64})
      for (const bool sentinel : {false, true}) {
        if (ctas > sms || static_cast<size_t>(passes) * ctas * words * 16 > bytes) continue;
        check(cudaMemset(rows, 0xff, static_cast<size_t>(passes) * ctas * words * 16), "fill");
        check(cudaMemset(flags, 0, 4096), "fill");
        launch(grid_exchange, ctas, 256, 0, 0, clocks, rows, flags, passes, words, sentinel);
        char name[96];
        std::snprintf(name, sizeof name, "grid exchange %d CTAs %d B by %s", ctas, ctas * words * 16,
                      sentinel ? "sentinel" : "flags");
        report(name, cycles(passes), "cycles a step");
      }
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  const size_t count = bytes / 2 / sizeof(float4);
  const auto* from = reinterpret_cast<const float4*>(rows);
  float best = 1e9f;
  for (int i = 0; i < 5; ++i) {
    check(cudaEventRecord(begin), "event");
    copy<<<sms * 8, 512>>>(from, reinterpret_cast<float4*>(rows) + count, count);
    check(cudaEventRecord(end), "event");
    check(cudaEventSynchronize(end), "copy");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end), "event");
    best = milliseconds < best ? milliseconds : best;
  }
  report("memory read and written", static_cast<double>(bytes) / best / 1e6, "GB/s");
  check(cudaFree(rows), "memory");
  check(cudaFree(flags), "memory");
}

}  // namespace

int main() {
  check(cudaMalloc(&clocks, 64), "memory");
  cudaDeviceProp device{};
  check(cudaGetDeviceProperties(&device, 0), "device");
  std::printf("what,value,unit\n");
  report("multiprocessors", device.multiProcessorCount, "");
  report("L2", static_cast<double>(device.l2CacheSize), "bytes");
  report("shared memory a CTA", static_cast<double>(device.sharedMemPerBlockOptin), "bytes");
  products();
  for (const int threads : {128, 256, 512}) {
    cta_barrier<<<1, threads>>>(clocks, 1000);
    char name[64];
    std::snprintf(name, sizeof name, "CTA barrier %d threads", threads);
    report(name, cycles(1000), "cycles");
  }
  grids(device.multiProcessorCount);
  clusters(device.sharedMemPerBlockOptin - 1024);
  report("done", 1, "");
}
