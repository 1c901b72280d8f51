// Which kernel runs a call on which device, and how it is launched: a pure function, no CUDA. plan_cuda.cpp shows it
// to Python, run.cpp obeys it.
#pragma once
#include <stddef.h>

#include "cuda/call.h"
#include "cuda/instance.h"

namespace fusedrnn::cuda {
// What the planner asks of a GPU. run.cpp fills it from the CUDA runtime, tests from data sheets.
struct Device {
  int major, minor;  // compute capability
  int sms;           // that this process may use
  int smem_bytes;    // shared memory a CTA may ask for (cudaDevAttrMaxSharedMemoryPerBlockOptin)
  int64_t l2_bytes;
  double clock_ghz;
  double memory_gbs;    // bandwidth of the main memory, GB/s
  bool cooperative;     // a grid can be launched only if all of it is resident
  int max_clusters[5];  // clusters of 1, 2, 4, 8, 16 CTAs resident at once, each CTA with the shared memory above
};

struct Plan {
  Regime regime;
  int instance;        // row of the table of instances; -1: the time-step kernel, which lays itself out: what
                       // follows, up to wave, says nothing then
  int groups;          // batch groups a stream, each on a team of its own
  int team;            // CTAs that share a group's hidden units
  int cluster;         // CTAs of a cluster, 1 if there is none
  int threads;         // of a CTA
  int64_t smem_bytes;  // of a CTA
  int wave;            // teams of one launch; 0: all of them. A grid launches no more than are resident at once
  double us_per_step;  // predicted, with a step's share of what a call costs beside its steps
};

struct Request {
  Problem problem;
  Pass pass;
  Precision precision;
  bool masked;       // lengths, resets or packed rows
  bool derivatives;  // dgates or dcs come in: the time-step kernel only
  bool noise;        // zoneout or recurrent dropout: likewise
  bool norm;         // layer normalisation: likewise, in two launches a step
  bool goes_back;    // a reset goes back to a state that is given: likewise
  Regime wish;       // automatic: the fastest by the model
};

// Throws std::invalid_argument, with the reason, where the regime wished for cannot take the request.
Plan plan(const Request& request, const Device& device, const Instance* instances, size_t count);
}  // namespace fusedrnn::cuda
