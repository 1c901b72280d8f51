// How the threads of one CPU call share the work, and how much memory it takes: pure functions of the problem and of
// the machine's numbers. No torch, no instruction set; exposed to Python by plan_module.cpp.
#pragma once
#include "recurrence.h"

namespace fusedrnn::cpu {
enum class Split : int { automatic, batch, columns };  // the last two force a choice, for tests

struct Machine {
  int threads;
  int64_t l2_bytes;  // of one core
  int vector_bytes;  // of the instruction set
  int registers;     // vector registers of the instruction set
  Split split = Split::automatic;
};

struct Plan {
  int streams = 1, batches = 1,
      columns = 1;        // threads = product; only threads that share a stream and its rows wait for each other
  int64_t chunk = 1;      // time steps whose input projection (forward), or dW and dx (backward), is done at once
  int lstm_cols = 4;      // forward: width of an LSTM weight block, 4 or 2 vectors
  bool in_place = false;  // weights are read as they lie, not packed: there is too little to do with them
  int threads() const { return streams * batches * columns; }
};

// gates: of a product; element_bytes: 4 or 8, and forward 2 for bfloat16 by AMX (else it runs in float).
Plan plan_forward(const Problem& problem, int gates, int element_bytes, const Machine& machine);
Plan plan_backward(const Problem& problem, int gates, int element_bytes, const Machine& machine);
}  // namespace fusedrnn::cpu
