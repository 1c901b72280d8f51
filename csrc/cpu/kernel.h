// The CPU kernel as the rest of the library sees it: the calls, and the table that kernel.cpp fills once per
// instruction set (isa.txt).
#pragma once
#include "cpu/plan.h"
#include "recurrence.h"

namespace fusedrnn::cpu {
struct Bfloat {
  uint16_t bits;
};

template <class T>
struct ForwardCall {
  Problem problem;
  Plan plan;
  Rows rows;
  Noise noise;  // where I = 0
  const T* x;   // [T, B, I] by strides, where I > 0
  int64_t x_t, x_b;
  Sequence<const T> gates_x;        // [T, B, S, G H], where I = 0: W_ih x + b_ih
  const Weights<const T>* weights;  // [S]; ih and b_ih null where I = 0
  Norms<const T> norms;             // where the problem is normed, which has I = 0
  const T *h0, *c0;                 // [S, B, H], or null: zeros
  Sequence<T> y, cs;                // [T, B, S, H]; cs is the LSTM's and may be absent
  Kept<T> kept;                     // may be absent: inference
  Sequence<T> products;             // [T, B, S, G H]: W_hh h before it is normalised; may be absent
  T *hn, *cn;                       // [S, B, H]
  T* scratch;                       // forward_scratch() elements
  int64_t* epochs;                  // 8 a thread (a cache line), zeroed
};

// Two forms: with I > 0 it goes on to dx and the weights' gradients; with I = 0 it ends at the gates' gradients,
// dgates_x and dq.
template <class T>
struct BackwardCall {
  Problem problem;
  Plan plan;
  Rows rows;
  Noise noise;  // where I = 0
  const T* x;
  int64_t x_t, x_b;
  const Weights<const T>* weights;
  Norms<const T> norms;        // where the problem is normed, like the two below
  Sequence<const T> products;  // what forward returned
  Sequence<T> dproducts;
  const T *h0, *c0;           // [S, B, H], or null: zeros
  Sequence<const T> y, cs;    // what forward returned
  Kept<const T> kept, dkept;  // dkept: gradients that reach the kept values from a second derivative, or absent
  Sequence<const T> dy, dcs;  // may be absent
  const T *dhn, *dcn;         // may be null
  Sequence<T> dgates_x, dq;   // [T, B, S, G H], and for the GRU [T, B, S, H]: gradient of q = W_hn h + b_hn; for a
                              // normed LSTM that of the normalised c
  T* dx;                      // [T, B, I] by strides; may be null
  int64_t dx_t, dx_b;
  const Weights<T>* dweights;  // [S], or null: not wanted
  T *dh0, *dc0;                // [S, B, H], or null
  T* scratch;
  int64_t* epochs;
};

template <class T>
struct Kernels {
  int64_t (*kept_size)(const Problem&);  // elements of the padded form of Kept
  Kept<T> (*kept_view)(const Problem&, T* base);
  int64_t (*forward_scratch)(const Problem&, const Plan&);  // elements
  int64_t (*backward_scratch)(const Problem&, const Plan&, bool want_dx, bool want_dw);
  void (*forward)(const ForwardCall<T>&, int thread);  // called by plan.threads() threads at once
  void (*backward)(const BackwardCall<T>&, int thread);
  void (*pointwise)(bool tanh, const T* x, T* y,
                    int64_t n);  // the vectorised functions by themselves, for tests of their accuracy
};

struct InstructionSet {
  const char* name;
  int vector_bytes, registers;
  Kernels<float> f32;
  Kernels<double> f64;
  Kernels<Bfloat> bf16;  // where it multiplies bfloat16: forward without Kept, and nothing else
};
namespace generic {
extern const InstructionSet instruction_set;
}
namespace avx2 {
extern const InstructionSet instruction_set;
}
namespace avx512 {
extern const InstructionSet instruction_set;
}
namespace amx {
extern const InstructionSet instruction_set;
}

int cell_gates(int cell);
int cell_kept(int cell);
// The widest instruction set that was built and that this processor runs. FUSEDRNN_ISA=<name> chooses another at start;
// an unknown or unsupported name is reported by unsupported_isa() (null if there is none) and the widest is used.
const InstructionSet& instruction_set();
// Whether its bf16 may run: the system grants a process AMX on demand.
bool multiplies_bfloat();
const char* unsupported_isa();
template <class T>
const Kernels<T>& kernels() {
  if constexpr (sizeof(T) == 2)
    return instruction_set().bf16;
  else if constexpr (sizeof(T) == 4)
    return instruction_set().f32;
  else
    return instruction_set().f64;
}
Machine machine(int threads);
}  // namespace fusedrnn::cpu
