#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cpu/amx.h"
#include "cpu/kernel.h"

namespace fusedrnn::cpu {
namespace {
struct Candidate {
  const InstructionSet& set;
  bool (*runs)();  // on this processor; asked only of what is wanted, because AMX has to be requested
};

#if defined(__x86_64__)
bool runs_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
}
#endif

const InstructionSet* choose(
    const char* wanted) {  // null: the widest; null result: not built, or not for this processor
  const Candidate candidates[] = {
#ifdef FUSEDRNN_HAVE_amx
      {amx::instruction_set, [] { return runs_avx512() && runs_amx(); }},
#endif
#ifdef FUSEDRNN_HAVE_avx512
      {avx512::instruction_set, runs_avx512},
#endif
#ifdef FUSEDRNN_HAVE_avx2
      {avx2::instruction_set, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
      {generic::instruction_set, [] { return true; }}};
  for (const Candidate& c : candidates)
    if ((!wanted || !std::strcmp(wanted, c.set.name)) && c.runs()) return &c.set;
  return nullptr;
}

const char* wanted_isa() {
  const char* name = std::getenv("FUSEDRNN_ISA");
  return name && *name ? name : nullptr;
}

Split wanted_split() {  // for tests
  const char* name = std::getenv("FUSEDRNN_SPLIT");
  if (name && !std::strcmp(name, "batch")) return Split::batch;
  if (name && !std::strcmp(name, "columns")) return Split::columns;
  return Split::automatic;
}
}  // namespace

const InstructionSet& instruction_set() {
  static const InstructionSet& chosen = [&]() -> const InstructionSet& {
    const InstructionSet* wanted = choose(wanted_isa());
    return wanted ? *wanted : *choose(nullptr);
  }();
  return chosen;
}

bool multiplies_bfloat() { return instruction_set().bf16.forward && runs_amx(); }

const char* unsupported_isa() {
  static const char* const name = choose(wanted_isa()) ? nullptr : wanted_isa();
  return name;
}

Machine machine(int threads) {
  static const int64_t l2_bytes = [] {
#ifdef _SC_LEVEL2_CACHE_SIZE
    const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (bytes >= 128 << 10) return bytes;
#endif
    return int64_t(512 << 10);
  }();
  static const Split split = wanted_split();
  return {threads, l2_bytes, instruction_set().vector_bytes, instruction_set().registers, split};
}

int cell_gates(int cell) { return cell == kGru ? Gru::kGates : cell == kLstm ? Lstm::kGates : Rnn<false>::kGates; }
int cell_kept(int cell) { return cell == kGru ? Gru::kKept : cell == kLstm ? Lstm::kKept : Rnn<false>::kKept; }
}  // namespace fusedrnn::cpu
