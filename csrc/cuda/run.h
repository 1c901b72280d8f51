// Runs a planned call on a stream: packs the weights, launches the kernel. Knows the CUDA runtime, no torch. Compiled
// by g++ against csrc/host_device it runs on the CPU.
#pragma once
#include "cuda/plan.h"

namespace fusedrnn::cuda {
Device device_of(int index);               // asked once a device
const Instance* instances(size_t* count);  // the table that this library was compiled with
size_t scratch_bytes(const Call&, const Plan&);
// Throws std::runtime_error if a CUDA call fails. Does not synchronise; can be captured in a CUDA graph.
void run(const Call&, const Plan&, void* scratch, void* stream);
void poison(void* memory, size_t bytes, void* stream);  // ones in every bit

// The time-step kernel (step.cu): takes every call, fp64, dgates and dcs included.
size_t step_scratch_bytes(const Call&);
void run_step(const Call&, void* scratch, void* stream);
// Its twin with layer normalisation (norm_step.cu): takes no packed rows, and no dgates.
size_t norm_step_scratch_bytes(const Call&);
void run_norm_step(const Call&, const NormTensors&, void* scratch, void* stream);
}  // namespace fusedrnn::cuda
