// Where things lie in the scratch memory of a call in bfloat16.
#pragma once
#include "cpu/scratch.h"
#include "cpu/tiles.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
struct RowStep {  // where one row finds and leaves its things in the step at hand
  const float *h_before, *c_before;
  float *h, *c;
  Bfloat *y, *cs;
  char* next;        // its row of h's tiles for the next step
  int32_t of_block;  // its place among the rows of its block
  __mmask16 lives;   // no lane where the next step cuts it off
};
constexpr int64_t kGatesBytes = 2 * kTileHeight * 4 * kTileHeight * 4;  // of a block: two row tiles, up to four columns

template <class C>
struct BfloatScratch {           // in bytes, of the scratch memory and inside each part
  int64_t x_tiles, h_tiles;      // tiles of a row tile: I and H over 32
  int64_t row_tiles, tile_rows;  // of a thread's rows
  int64_t weights, per_stream, packed_x, packed_h, bias_x, bias_h;
  int64_t h, per_h, state, c, per_state, zeros;
  int64_t threads, per_thread, ring, x, gates, inputs, batch, first, steps;
  int64_t total;

  BfloatScratch(const Layout<float, C>& l, const Plan& p) {
    const int64_t rows = ceil_div(l.B, p.batches), G = C::kGates,
                  x_rows = ceil_div(p.chunk * rows, kTileHeight) * kTileHeight;
    x_tiles = ceil_div(l.I, kTileK), h_tiles = ceil_div(l.H, kTileK);
    row_tiles = at_least(1, ceil_div(rows, kTileHeight)), tile_rows = ceil_div(rows, row_tiles);
    int64_t vectors = 0;
    for (int i = 0; i < p.columns; i++)
      vectors = at_least(vectors, l.panels.first(share(l, i + 1, p)) - l.panels.first(share(l, i, p)));
    Carver stream;
    packed_x = stream.elements(l.hv * G * x_tiles * kTileBytes);
    packed_h = stream.elements(l.hv * G * h_tiles * kTileBytes);
    bias_x = stream.elements(l.Hp * G * 4);
    bias_h = stream.elements(l.Hp * G * 4);
    per_stream = stream.at;
    Carver mine;
    ring = mine.elements(x_rows * vectors * G * kTileHeight * 4);
    x = mine.elements(x_rows / kTileHeight * x_tiles * kTileBytes);
    gates = mine.elements(2 * kGatesBytes);
    inputs = mine.elements(p.chunk * rows * 8);
    batch = mine.elements(p.chunk * rows * 8);
    first = mine.elements((p.chunk + 1) * 8);
    steps = mine.elements(rows * int64_t(sizeof(RowStep)));
    per_thread = mine.at + kLine;
    Carver all;
    weights = all.elements(l.S * per_stream);
    per_h = row_tiles * h_tiles * kTileBytes;
    h = all.elements(2 * l.S * p.batches * per_h);
    per_state = l.B * l.ldh * 4;
    state = all.elements(l.S * per_state);
    c = all.elements(C::kHasC ? l.S * per_state : 0);
    zeros = all.elements(l.ldh * 4);
    threads = all.elements(p.threads() * per_thread);
    total = all.at + kLine;
  }
  // The first panel of part i: where a cache line of h's tiles, two vectors, begins.
  static int64_t share(const Layout<float, C>& l, int64_t i, const Plan& p) {
    int64_t panel = l.panels.count * i / p.columns;
    while (panel > 0 && panel < l.panels.count && l.panels.first(panel) % 2) panel--;
    return panel;
  }
};
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA
