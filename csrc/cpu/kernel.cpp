// The CPU kernel, compiled once per row of isa.txt with -DFUSEDRNN_ISA=<name> and that row's flags. Everything sits in
// the namespace of its instruction set, and no torch header and no function of the standard library is used: a weak
// symbol that was compiled for AVX-512 would be merged by the linker for all. tests/test_build.py looks at the symbols.
#include "cpu/norm_backward.h"
#include "cpu/norm_forward.h"
#if defined(__AMX_BF16__)
#include "cpu/bfloat.h"
#endif

namespace fusedrnn::cpu::FUSEDRNN_ISA {
template <class T>
struct Table {
  template <class F>
  static auto by_cell(int cell, const F& run) {
    switch (cell) {
      case kGru:
        return run(Gru{});
      case kLstm:
        return run(Lstm{});
      case kRnnTanh:
        return run(Rnn<false>{});
      default:
        return run(Rnn<true>{});
    }
  }
  static int64_t kept_size(const Problem& p) {
    return by_cell(p.cell,
                   [&](auto c) { return p.S * p.T * ceil_div(p.H, Vec<T>::lanes) * p.B * c.kKept * Vec<T>::lanes; });
  }
  // [S][T][vectors of H][B][Z][lanes]: one unit vector's values of all rows side by side, as the loops visit them.
  static Kept<T> kept_view(const Problem& p, T* base) {
    return by_cell(p.cell, [&](auto c) {
      const int64_t W = Vec<T>::lanes, row = c.kKept * W, vector = p.B * row, t = ceil_div(p.H, W) * vector;
      return Kept<T>{base, t, row, p.T * t, vector, W, true};
    });
  }
  static int64_t forward_scratch(const Problem& p, const Plan& plan) {
    return by_cell(p.cell,
                   [&](auto c) { return ForwardScratch<T, decltype(c)>(Layout<T, decltype(c)>(p), plan).total; });
  }
  static int64_t backward_scratch(const Problem& p, const Plan& plan, bool want_dx, bool want_dw) {
    return by_cell(p.cell, [&](auto c) {
      return BackwardScratch<T, decltype(c)>(Layout<T, decltype(c)>(p), plan, want_dx, want_dw).total;
    });
  }
  static void forward(const ForwardCall<T>& f, int thread) {
    by_cell(f.problem.cell, [&](auto c) { Forward<T, decltype(c)>(f, thread).run(); });
  }
  static void backward(const BackwardCall<T>& f, int thread) {
    by_cell(f.problem.cell, [&](auto c) { Backward<T, decltype(c)>(f, thread).run(); });
  }
  static void pointwise(bool tanh, const T* x, T* y, int64_t n) {
    for (int64_t i = 0; i < n; i += Vec<T>::lanes) {
      const Vec<T> v = Vec<T>::load(x + i, n - i);
      (tanh ? hyperbolic_tangent(v) : sigmoid(v)).store(y + i, n - i);
    }
  }
  static constexpr Kernels<T> kernels = {kept_size, kept_view, forward_scratch, backward_scratch,
                                         forward,   backward,  pointwise};
};

struct BfloatTable {
#if defined(__AMX_BF16__)
  static int64_t forward_scratch(const Problem& p, const Plan& plan) {
    return Table<float>::by_cell(p.cell, [&](auto c) {
      return ceil_div(BfloatScratch<decltype(c)>(Layout<float, decltype(c)>(p), plan).total, sizeof(Bfloat));
    });
  }
  static void forward(const ForwardCall<Bfloat>& f, int thread) {
    Table<float>::by_cell(f.problem.cell, [&](auto c) { BfloatForward<decltype(c)>(f, thread).run(); });
  }
  static void pointwise(bool tanh, const Bfloat* x, Bfloat* y, int64_t n) {
    for (int64_t i = 0; i < n; i += Vec<float>::lanes) {
      const Quick v = load(x + i, n - i);
      store(rounded((tanh ? hyperbolic_tangent(v) : sigmoid(v)).v), y + i, n - i);
    }
  }
  static constexpr Kernels<Bfloat> kernels = {nullptr, nullptr, forward_scratch, nullptr, forward, nullptr, pointwise};
#else
  static constexpr Kernels<Bfloat> kernels = {};
#endif
};

#define FUSEDRNN_NAME_(isa) #isa
#define FUSEDRNN_NAME(isa) FUSEDRNN_NAME_(isa)
extern const InstructionSet instruction_set = {
    FUSEDRNN_NAME(FUSEDRNN_ISA), kVectorBytes,           kRegisters,
    Table<float>::kernels,       Table<double>::kernels, BfloatTable::kernels};
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
