// What the time-step kernel is built from: the elements of a precision, the tile of a CTA, and which rows a step has.
#pragma once
#include <type_traits>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cuda/call.h"
#include "cuda/value.h"

namespace fusedrnn::cuda {
struct Fp64 {};  // like Bf16, Fp16, Tf32 and Fp32, of which the device API knows

// How a precision's elements lie in memory, and what they are computed with. fp32 and fp64 know no tensor cores.
template <class P>
struct Element {
  using Stored = float;
  using Value = cuda::Value<P>;
  using Number = float;
  static constexpr bool kTensorCores = std::is_same_v<P, Tf32>;
  static FUSEDRNN_DEVICE Number load(const Stored* p) { return load_global(p); }
  static FUSEDRNN_DEVICE void store(Stored* p, Value v) { store_global(p, v.x); }
  static FUSEDRNN_DEVICE Number number(Value v) { return v.x; }
};
template <>
struct Element<Fp64> {
  using Stored = double;
  using Value = double;
  using Number = double;
  static constexpr bool kTensorCores = false;
  static FUSEDRNN_DEVICE Number load(const Stored* p) { return load_global(p); }
  static FUSEDRNN_DEVICE void store(Stored* p, Value v) { store_global(p, v); }
  static FUSEDRNN_DEVICE Number number(Value v) { return v; }
};
template <class P>
struct HalfElement {
  using Stored = uint16_t;
  using Value = cuda::Value<P>;
  using Number = float;
  static constexpr bool kTensorCores = true;
  static FUSEDRNN_DEVICE Number load(const Stored* p) {
    float low, high;
    unpack2<P>(load_global(p), low, high);
    return low;
  }
  static FUSEDRNN_DEVICE void store(Stored* p, Value v) { store_global(p, static_cast<Stored>(pack2<P>(v.x, 0.f))); }
  static FUSEDRNN_DEVICE Number number(Value v) { return v.x; }
};
template <>
struct Element<Bf16> : HalfElement<Bf16> {};
template <>
struct Element<Fp16> : HalfElement<Fp16> {};

constexpr int kStepWarps = 8, kStepThreads = 32 * kStepWarps;
constexpr int kTileRows = 32;  // most batch rows of a CTA

// The tile of a CTA, and where it lies in shared memory: the rows' sources, the sums of the product, and what a product
// without tensor cores stages its operands in.
template <class P, class C, Pass kPass>
struct StepTile {
  using Stored = typename Element<P>::Stored;
  using Number = typename Element<P>::Number;
  static constexpr bool kForward = kPass == Pass::forward, kTensorCores = Element<P>::kTensorCores;
  static constexpr bool kHasQ = !kForward && C::kParts > C::kGates;  // the last gate's gradients lie apart, in dq
  static constexpr int kUnits = kForward ? 16 : 32, kSums = kForward ? C::kGates : 1;
  static constexpr int kProductGates = kForward ? 1 : C::kGates;  // whose sums follow each other in k
  static constexpr int kSplits = kTensorCores ? kStepWarps : 1;   // of k, summed by the reader
  static constexpr int kChunk = kTensorCores ? 0 : 32;            // of k, in shared memory

  static constexpr int kChunkStride = kChunk + 4, kRowStride = kUnits + 4;  // off the same banks
  static constexpr int kSumsOffset = 2 * kTileRows * int(sizeof(void*));
  static constexpr int kStageOffset = kSumsOffset + kSplits * kSums * kTileRows * kRowStride * int(sizeof(Number));
  static constexpr int kSmemBytes =
      kStageOffset + (kTensorCores ? 0 : (kSums * kUnits + kTileRows) * kChunkStride * int(sizeof(Number)));
  static FUSEDRNN_DEVICE int sum(int split, int gate, int row, int unit) {
    return ((split * kSums + gate) * kTileRows + row) * kRowStride + unit;
  }

  const int64_t H;
  const int64_t unit0, b0;  // first unit and batch row
  const int rows;           // batch rows, at most kTileRows

  static FUSEDRNN_DEVICE const Stored** sources() { return reinterpret_cast<const Stored**>(smem_base()); }
  static FUSEDRNN_DEVICE Number* sums() { return reinterpret_cast<Number*>(smem_base() + kSumsOffset); }
  static FUSEDRNN_DEVICE Number* stage() { return reinterpret_cast<Number*>(smem_base() + kStageOffset); }
  // H numbers that gate's weights are multiplied with, or null for zeros.
  FUSEDRNN_DEVICE const Stored* source(int gate, int row) const {
    if (kHasQ && gate == C::kGates - 1) return sources()[kTileRows + row];
    const Stored* const first = sources()[row];
    return first ? first + gate * H : nullptr;
  }
};

// The rows of one stream, step by step. All rows of a stream take the same time step in the same step; a row shorter
// than T ends early, or starts late where time runs backwards.
struct Walk {
  const Call& call;
  const int64_t s;

  FUSEDRNN_DEVICE bool backwards() const { return s % call.problem.directions == 1; }
  FUSEDRNN_DEVICE int64_t time(int64_t step) const { return backwards() ? call.problem.T - 1 - step : step; }
  FUSEDRNN_DEVICE bool real(int64_t t, int64_t b) const {
    const Rows& rows = call.rows;
    return !rows.lengths || t < load_global(rows.lengths + s * rows.length_s + b * rows.length_b);
  }
  // Whether the row does not take over the state of the step before: a reset cuts between t - 1 and t in both
  // directions.
  FUSEDRNN_DEVICE bool cut(int64_t t, int64_t b) const {
    const Rows& rows = call.rows;
    if (!rows.reset) return false;
    const int64_t border = backwards() ? t + 1 : t;
    return border < call.problem.T && real(border, b) &&
           load_global(rows.reset + border * rows.reset_t + b * rows.reset_b + s * rows.reset_s);
  }
  // Whether the step is the first real one of its row: it starts from the initial state (unless it is cut off from it).
  FUSEDRNN_DEVICE bool starts(int64_t t, int64_t b) const {
    return backwards() ? t + 1 == call.problem.T || !real(t + 1, b) : t == 0;
  }
  FUSEDRNN_DEVICE int64_t row(int64_t t, int64_t b) const {
    return ((call.offsets ? load_global(call.offsets + t) : t * call.problem.B) + b) * call.problem.S + s;
  }
  FUSEDRNN_DEVICE int64_t edge(int64_t b) const { return s * call.problem.B + b; }
  // The state that a real row starts a step from, H numbers; null for zeros. `reset`: those of all streams behind cuts.
  template <class Stored>
  FUSEDRNN_DEVICE const Stored* before(const void* states, const void* initial, const void* reset, int64_t step,
                                       int64_t b) const {
    const int64_t t = time(step), H = call.problem.H;
    if (cut(t, b)) return reset ? static_cast<const Stored*>(reset) + s * H : nullptr;
    if (!starts(t, b)) return static_cast<const Stored*>(states) + row(time(step - 1), b) * H;
    return initial ? static_cast<const Stored*>(initial) + edge(b) * H : nullptr;
  }
};
}  // namespace fusedrnn::cuda
