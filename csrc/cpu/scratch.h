// Where things lie in the scratch memory of a call. Offsets in elements.
#pragma once
#include "cpu/layout.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
// Hands out pieces of scratch memory, each on cache lines of its own.
struct Carver {
  int64_t at = 0;
  int64_t elements(int64_t n) {
    const int64_t here = at;
    at += ceil_div(n, kLine) * kLine;
    return here;
  }
  int64_t words(int64_t n, int64_t element_bytes) {
    return elements(ceil_div(n * 8, element_bytes));
  }  // pointers and indices
};

template <class T, class C>
struct ForwardScratch {
  int64_t weights, h, c, mask, seen, zeros, threads, per_thread, total;
  int64_t ring, inputs, batch, first, h_rows, c_rows, seen_rows, products, own_c;  // inside a thread's part
  ForwardScratch(const Layout<T, C>& l, const Plan& p) {
    const int64_t rows = ceil_div(l.B, p.batches), chunk_rows = p.chunk * rows, word = sizeof(T);
    int64_t vectors = 0;  // of the thread with most units
    for (int i = 0; i < p.columns; i++)
      vectors = at_least(
          vectors, l.panels.first(l.panels.share(i + 1, p.columns)) - l.panels.first(l.panels.share(i, p.columns)));
    Carver mine;
    ring = mine.elements(chunk_rows * vectors * l.X * l.W);
    inputs = mine.words(chunk_rows, word);
    batch = mine.words(chunk_rows, word);
    first = mine.words(p.chunk + 1, word);
    h_rows = mine.words(rows, word);
    c_rows = mine.words(rows, word);
    seen_rows = l.dropout ? mine.words(rows, word) : h_rows;
    products = mine.elements(l.normed ? rows * l.ldp : 0);
    own_c = mine.elements(l.normed && C::kHasC ? 2 * l.Hp : 0);
    per_thread = mine.at + kLine;
    Carver all;
    weights = all.elements(l.S * l.packed_forward(p));
    h = all.elements(2 * l.S * l.B * l.ldh);
    c = all.elements(C::kHasC ? l.S * l.B * l.ldh : 0);
    mask = all.elements(l.dropout ? l.S * l.B * l.ldh : 0);
    seen = all.elements(l.dropout ? 2 * l.S * l.B * l.ldh : 0);
    zeros = all.elements(l.ldh);
    threads = all.elements(p.threads() * per_thread);
    total = all.at + kLine;
  }
};

template <class T, class C>
struct BackwardScratch {
  int64_t weights, dh, dc, mask, dw, dx_second, zeros, teams, per_team, threads, per_thread, total;
  int64_t db, operands, dgates, batch, time, first, inputs, h_before, c_before, dx_rows, going,
      going_dh;         // inside a thread's part
  bool x_last, h_last;  // whether dW_ih, dW_hh are summed in their tensors: one part only, and no padded columns
  int64_t dw_row;       // elements of a row of the part of dW that is not, [x | h]
  BackwardScratch(const Layout<T, C>& l, const Plan& p, bool want_dx, bool want_dw) {
    const int64_t rows = ceil_div(l.B, p.batches), chunk_rows = p.chunk * rows, word = sizeof(T);
    h_last = p.batches == 1 && l.H % l.W == 0;
    x_last = h_last && l.I % l.W == 0;
    dw_row = (x_last ? 0 : l.Ip) + (h_last ? 0 : l.Hp);
    Carver mine;
    db = mine.elements(want_dw ? l.S * 2 * l.X * l.Hp : 0);
    operands = mine.elements(want_dw ? chunk_rows * (l.Ip + l.Hp) : 0);
    dgates = mine.words(chunk_rows, word);
    batch = mine.words(chunk_rows, word);
    time = mine.words(chunk_rows, word);
    first = mine.words(p.chunk + 1, word);
    inputs = mine.words(chunk_rows, word);
    h_before = mine.words(chunk_rows, word);
    c_before = mine.words(chunk_rows, word);
    dx_rows = mine.words(chunk_rows, word);
    going = mine.words(rows, word);
    going_dh = mine.words(rows, word);
    per_thread = mine.at + kLine;
    per_team = ceil_div(chunk_rows * l.ldg, kLine) * kLine + kLine;
    Carver all;
    weights = all.elements(l.S * l.packed_backward(p, want_dx));
    dh = all.elements(l.S * l.B * l.ldh);
    dc = all.elements(C::kHasC ? l.S * l.B * l.ldh : 0);
    mask = all.elements(l.dropout ? l.S * l.B * l.ldh : 0);
    dw = all.elements(want_dw ? p.batches * l.S * l.G * l.Hp * dw_row : 0);
    dx_second = all.elements(want_dx && p.streams == 2 ? l.T * l.B * l.I : 0);
    zeros = all.elements(l.ldh);
    teams = all.elements(p.streams * p.batches * per_team);
    threads = all.elements(p.threads() * per_thread);
    total = all.at + kLine;
  }
};
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
