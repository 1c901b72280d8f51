// The few things that run.cpp asks of the CUDA runtime, and the same on the stand-in.
#pragma once
#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/plan.h"
#if defined(FUSEDRNN_HOST_DEVICE)
#include "host_device/device_api.h"
#else
#include <cuda_runtime.h>
#endif

namespace fusedrnn::cuda {
struct Launch {
  int ctas, threads, cluster = 1, smem_bytes = 0;
  bool resident = false;  // all CTAs at once, or not at all
};

#if defined(FUSEDRNN_HOST_DEVICE)
// A made-up device: a few small clusters, and so few SMs that a grid takes several waves.
inline Device query_device(int) { return {9, 0, 24, 232448, 50 << 20, 1.7, 3350, true, {24, 0, 0, 0, 0}}; }
inline int max_clusters(int, const void*, int size, int, int) { return size <= 8 ? 24 / size : 0; }
inline int resident_ctas(int, const void*, const Launch&) { return 24; }
inline void fill_ones(void* to, int64_t bytes, void*) { std::fill_n(static_cast<char*>(to), bytes, char(-1)); }

template <class... Arguments>
void launch_kernel(const void* kernel, const Launch& launch, void*, Arguments... arguments) {
  const auto body = reinterpret_cast<void (*)(Arguments...)>(const_cast<void*>(kernel));
  const bool independent = launch.cluster == 1 && !launch.resident;
  host_device::launch(
      launch.ctas, launch.threads, launch.cluster, launch.smem_bytes, host_device::seed(), [=] { body(arguments...); },
      independent       ? std::max(4, 512 / launch.threads)
      : launch.resident ? 0
                        : std::max(1, 8 / launch.cluster) * launch.cluster);
}
#else
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // told here, and not again to whoever asks next
  throw std::runtime_error(std::string("fusedrnn: ") + what + ": " + cudaGetErrorString(error));
}

inline Device query_device(int index) {
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, index), "cudaDeviceGetAttribute");
    return value;
  };
  Device device{};
  device.major = attribute(cudaDevAttrComputeCapabilityMajor);
  device.minor = attribute(cudaDevAttrComputeCapabilityMinor);
  device.sms = attribute(cudaDevAttrMultiProcessorCount);
  device.smem_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  device.l2_bytes = attribute(cudaDevAttrL2CacheSize);
  device.clock_ghz = attribute(cudaDevAttrClockRate) * 1e-6;
  device.memory_gbs = 2. * attribute(cudaDevAttrMemoryClockRate) * attribute(cudaDevAttrGlobalMemoryBusWidth) / 8e6;
  device.cooperative = attribute(cudaDevAttrCooperativeLaunch) != 0;
  device.max_clusters[0] = device.sms;
  return device;
}

// How a kernel is launched, and the attributes that it needs once on a device.
struct Configuration {
  cudaLaunchConfig_t launch{};
  cudaLaunchAttribute attributes[2];

  Configuration(const void* kernel, const Launch& given, void* stream) {
    launch.gridDim = dim3(static_cast<unsigned>(given.ctas));
    launch.blockDim = dim3(static_cast<unsigned>(given.threads));
    launch.dynamicSmemBytes = static_cast<size_t>(given.smem_bytes);
    launch.stream = static_cast<cudaStream_t>(stream);
    launch.attrs = attributes;
    if (given.cluster > 1) {
      cudaLaunchAttribute& attribute = attributes[launch.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {static_cast<unsigned>(given.cluster), 1, 1};
      if (given.cluster > 8)
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "clusters of 16");
    }
    if (given.resident) {
      cudaLaunchAttribute& attribute = attributes[launch.numAttrs++];
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
    if (given.smem_bytes > 0)
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, given.smem_bytes),
            "shared memory of a kernel");
  }
  Configuration(const Configuration&) = delete;
};

// Clusters of so many CTAs that are resident at once; 0 where the device has no clusters, or no code for it was
// compiled.
inline int max_clusters(int index, const void* kernel, int size, int threads, int smem_bytes) {
  int before = 0, count = 0;
  check(cudaGetDevice(&before), "cudaGetDevice");
  check(cudaSetDevice(index), "cudaSetDevice");
  try {
    const Configuration configuration(kernel, {size, threads, size, smem_bytes}, nullptr);
    if (cudaOccupancyMaxActiveClusters(&count, kernel, &configuration.launch) != cudaSuccess) count = 0;
  } catch (const std::runtime_error&) {
    count = 0;
  }
  cudaGetLastError();  // not an error of the caller's
  check(cudaSetDevice(before), "cudaSetDevice");
  return count;
}

// Asked once a row of the table and device.
inline int resident_ctas(int row, const void* kernel, const Launch& launch) {
  static std::mutex mutex;
  static std::map<std::pair<int, int>, int> known;
  int index = 0, count = 0;
  check(cudaGetDevice(&index), "cudaGetDevice");
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto found = known.find({row, index}); found != known.end()) return found->second;
  if (launch.cluster > 1) {
    count = max_clusters(index, kernel, launch.cluster, launch.threads, launch.smem_bytes) * launch.cluster;
  } else {
    int sms = 0;
    const Configuration configuration(kernel, launch, nullptr);
    check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, index), "cudaDeviceGetAttribute");
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, launch.threads,
                                                        static_cast<size_t>(launch.smem_bytes)),
          "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    count *= sms;
  }
  return known[{row, index}] = count;
}

inline void fill_ones(void* to, int64_t bytes, void* stream) {
  check(cudaMemsetAsync(to, 0xff, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream)), "cudaMemsetAsync");
}

template <class... Arguments>
void launch_kernel(const void* kernel, const Launch& launch, void* stream, Arguments... arguments) {
  const Configuration configuration(kernel, launch, stream);
  void* pointers[] = {&arguments...};
  check(cudaLaunchKernelExC(&configuration.launch, kernel, pointers), "launch of a kernel");
}
#endif
}  // namespace fusedrnn::cuda
