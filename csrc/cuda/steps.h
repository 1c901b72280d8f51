// The batch rows that a lane loads and stores (row lane / 4 of each tile), and where they are in every step.
//
// A row walks its own steps: step q = 0 .. length - 1 is time q, backwards in time it is time length - 1 - q. So every
// row starts at step 0, whatever its length and direction, and one that has ended needs nothing: its column of the
// product touches no other row, so its state may go on as it likes; only loads, stores and polls ask for q < length.
//
// The backward pass goes from the last step of the longest row of the group down to 0. Before its own last step a row
// sees dy = 0, hence dh = 0 and gates' gradients of exactly 0: again nothing to select; dhn and dcn enter at q = length
// - 1. A row outside the batch has length 0.
#pragma once
#include "cuda/pack.h"

namespace fusedrnn::cuda {
template <Instance I>
struct Steps {
  using L = Layout<I>;
  static constexpr int kTiles = L::kTiles, kRows = L::kChains * kTiles, kOwn = L::kMasked ? kRows : 1;
  static constexpr int kAhead = L::kBackward ? -1 : 1;  // from one step of the loop to the next

  int steps, move;  // of the group; rows of memory from one step of the loop to the next
  int length[kOwn];
  int before[kOwn], now[kOwn], after[kOwn], second[kOwn];  // rows of memory: of the last step, this one, the next two
  uint32_t cut_now[kOwn], cut[kOwn], cut_next[kOwn];  // cuts of this step, of step q + 1, of q + 1 in the next step
  bool own;                                           // this lane's units exist

  static FUSEDRNN_DEVICE int index(int chain, int tile) { return L::kMasked ? chain * kTiles + tile : 0; }
  static FUSEDRNN_DEVICE int length_of(const Params& p, const Place<I>& c, int row) {
    if (row >= p.B) return 0;
    return L::kMasked ? row_length(p.lengths, c.stream * p.length_s + row * p.length_b, p.T) : p.T;
  }
  FUSEDRNN_DEVICE int element(const Params& p, const Place<I>& c, int i, int q) const {
    const int row = c.row(i / kTiles, i % kTiles);
    if (static_cast<unsigned>(q) >= static_cast<unsigned>(length[i])) return 0;
    const int t = c.backwards ? length[i] - 1 - q : q;
    if constexpr (L::kMasked)
      if (p.offsets) return static_cast<int>(p.offsets[t]) + row;
    return t * p.B + row;
  }
  static FUSEDRNN_DEVICE uint32_t cut_byte(const Params& p, const Place<I>& c, int chain, int tile, int q) {
    if (q < 0 || !p.cuts) return 0;
    const int tiles = p.groups * kRows;
    return ld1(p.cuts + (static_cast<ptrdiff_t>(c.stream) * (p.T + 2) + q) * tiles + c.row0 / 8 + chain * kTiles +
               tile);
  }

  FUSEDRNN_DEVICE Steps(const Params& p, const Place<I>& c) {
    steps = p.T;
    if constexpr (L::kMasked) {
      steps = 0;
      for (int r = 0; r < L::kGroupRows; ++r) {
        const int l = length_of(p, c, c.row0 + r);
        steps = l > steps ? l : steps;
      }
    }
    own = !L::kMasked || c.unit() < p.H;
    move = L::kBackward == c.backwards ? p.B : -p.B;
    const int q = first();
    for (int i = 0; i < kOwn; ++i) {
      length[i] = L::kMasked ? length_of(p, c, c.row(i / kTiles, i % kTiles)) : p.T;
      now[i] = element(p, c, i, q);
      if constexpr (L::kMasked) {
        before[i] = 0;
        after[i] = element(p, c, i, q + kAhead);
        cut_now[i] = cut_byte(p, c, i / kTiles, i % kTiles, q);
        cut[i] = cut_byte(p, c, i / kTiles, i % kTiles, q + 1);
        cut_next[i] = cut_now[i];
      }
    }
  }
  FUSEDRNN_DEVICE int first() const { return L::kBackward ? steps - 1 : 0; }

  // At the start of step q: what advance(), and loads of the step after the next one, will need.
  FUSEDRNN_DEVICE void fetch(const Params& p, const Place<I>& c, int q) {
    if constexpr (L::kMasked)
      for (int i = 0; i < kRows; ++i) {
        second[i] = element(p, c, i, q + 2 * kAhead);
        cut_next[i] = cut_byte(p, c, i / kTiles, i % kTiles, q + 1 + kAhead);
      }
  }
  FUSEDRNN_DEVICE void advance() {
    for (int i = 0; i < kOwn; ++i)
      if constexpr (L::kMasked) {
        before[i] = now[i], now[i] = after[i], after[i] = second[i];
        cut_now[i] = cut[i], cut[i] = cut_next[i];
      } else {
        now[i] += move;
      }
  }

  FUSEDRNN_DEVICE bool inside(const Params& p, const Place<I>& c, int chain, int tile) const {
    return c.row(chain, tile) < p.B && own;
  }
  FUSEDRNN_DEVICE bool active(const Params& p, const Place<I>& c, int chain, int tile,
                              int q) const {  // the row has a step q
    if constexpr (L::kMasked)
      return static_cast<unsigned>(q) < static_cast<unsigned>(length[index(chain, tile)]);
    else
      return c.row(chain, tile) < p.B;
  }
  FUSEDRNN_DEVICE bool mine(const Params& p, const Place<I>& c, int chain, int tile, int q) const {
    return active(p, c, chain, tile, q) && own;
  }
  FUSEDRNN_DEVICE bool last(const Params& p, int chain, int tile, int q) const {  // the row's last step
    return q + 1 == (L::kMasked ? length[index(chain, tile)] : p.T);
  }
  // Row of memory of this step, of the last one, of the next `steps` (1 or 2).
  FUSEDRNN_DEVICE int at(int chain, int tile) const {
    return L::kMasked ? now[index(chain, tile)] : now[0] + chain * I.rows + tile * 8;
  }
  FUSEDRNN_DEVICE int previous(int chain, int tile) const {
    return L::kMasked ? before[index(chain, tile)] : at(chain, tile) - move;
  }
  FUSEDRNN_DEVICE int ahead(int chain, int tile, int of_steps) const {
    if constexpr (L::kMasked)
      return of_steps == 0   ? now[index(chain, tile)]
             : of_steps == 1 ? after[index(chain, tile)]
                             : second[index(chain, tile)];
    else
      return at(chain, tile) + of_steps * move;
  }
  // Bits of a byte of cuts: of the row that this lane stores, and of the two rows that it computes.
  static FUSEDRNN_DEVICE bool natural_bit(const Place<I>& c, uint32_t cuts) { return cuts >> (c.lane >> 2) & 1; }
  static FUSEDRNN_DEVICE bool computed_bit(const Place<I>& c, uint32_t cuts, int e) {
    return cuts >> (2 * (c.lane & 3) + e) & 1;
  }
};
}  // namespace fusedrnn::cuda
