// The slots of a cell, the sizes that follow from a problem, and which part of the work a thread has.
#pragma once
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cpu/gemm.h"
#include "cpu/kernel.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
constexpr int64_t kLine = 64;  // bytes of a cache line
static int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A cell's pre-activations lie in slots: the input product fills the first kGates, the recurrent product adds to kGates
// slots from kFirstH on. The GRU keeps its two halves of n apart (n_x, r, z, q), so both products write contiguous
// slots.
template <class C>
struct Slots {
  static constexpr int kFirstH = 0;
  static constexpr int part(int slot) { return slot; }    // the cell's part behind a slot
  static constexpr int x_gate(int slot) { return slot; }  // the weight gate behind a slot of the input product
  static constexpr int h_gate(int slot) { return slot; }  // and behind slot kFirstH + slot of the recurrent one
};
template <>
struct Slots<Gru> {
  static constexpr int kFirstH = 1;
  static constexpr int part(int slot) { return slot == 0 ? 2 : slot == 3 ? 3 : slot - 1; }
  static constexpr int x_gate(int slot) { return slot == 0 ? 2 : slot - 1; }
  static constexpr int h_gate(int slot) { return slot; }
};

// `vectors` columns cut into groups of at most `most`, as even as possible.
struct Groups {
  int64_t vectors, count;
  Groups(int64_t vectors_, int64_t most) : vectors(vectors_), count(ceil_div(vectors_, most)) {}
  int64_t first(int64_t g) const { return vectors * g / count; }
  int width(int64_t g) const { return int(first(g + 1) - first(g)); }
  // Where part i of n starts: on a cache line, so that no line is written by two threads.
  int64_t share(int i, int n) const {
    int64_t g = count * i / n;
    while (g > 0 && g < count && first(g) * kVectorBytes % kLine) g--;
    return g;
  }
};

template <class E, class C>
struct Layout : Problem {
  static constexpr int W = Vec<E>::lanes, G = C::kGates, X = C::kParts;
  int64_t hv, iv, Hp, Ip;  // vectors and padded lengths of H and I
  int64_t ldh, ldg, ldp;   // row strides of a state, of gate gradients and of products, off powers of two (cache-set conflicts)
  Groups panels;           // forward: units of a panel; its block has G * units columns
  Groups h_cols, x_cols;   // backward: column blocks of H and I
  explicit Layout(const Problem& p)
      : Problem(p),
        hv(ceil_div(p.H, W)),
        iv(ceil_div(p.I, W)),
        Hp(hv * W),
        Ip(iv * W),
        ldh(Hp + kLine / int64_t(sizeof(E))),
        ldg(X * Hp + kLine / int64_t(sizeof(E))),
        ldp(G * Hp + kLine / int64_t(sizeof(E))),
        panels(hv, G == 1 ? kMaxPanel : 1),
        h_cols(hv, kMaxPanel),
        x_cols(iv, kMaxPanel) {}
  int64_t packed_forward(const Plan& p) const { return biases() + (p.in_place ? 0 : (I + H) * G * Hp); }
  int64_t packed_backward(const Plan& p, bool want_dx) const {
    return p.in_place ? 0 : G * Hp * (Hp + (want_dx ? Ip : 0));
  }
  int64_t biases() const { return ceil_div(X * Hp, kLine) * kLine; }
  bool backwards(int64_t s) const { return s % directions == 1; }
  int64_t time(int64_t s, int64_t step) const { return backwards(s) ? T - 1 - step : step; }
  // Whether the row does not take over the state of the step before: a reset cuts between t - 1 and t in both
  // directions.
  bool cut(const Rows& rows, int64_t t, int64_t b, int64_t s) const {
    if (!rows.reset) return false;
    return backwards(s) ? t + 1 < T && rows.real(t + 1, b, s) && rows.cut(t + 1, b, s) : rows.cut(t, b, s);
  }
  // Whether the step is the first real one of its row: it starts from h0 (unless it is cut off from it).
  bool starts(const Rows& rows, int64_t t, int64_t b, int64_t s) const {
    return backwards(s) ? t + 1 == T || !rows.real(t + 1, b, s) : t == 0;
  }
};

struct Place {  // of one thread in the plan
  int column, batch, team;
  int64_t s0, s1, B0, B1, rows_max;
  Place(const Plan& p, const Problem& n, int thread)
      : column(thread % p.columns),
        batch(thread / p.columns % p.batches),
        team(thread / p.columns),
        s0(n.S * (team / p.batches) / p.streams),
        s1(n.S * (team / p.batches + 1) / p.streams),
        B0(n.B * batch / p.batches),
        B1(n.B * (batch + 1) / p.batches),
        rows_max(ceil_div(n.B, p.batches)) {}
};
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
