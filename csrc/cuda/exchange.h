// How the CTAs of a team pass the vector of one step to each other. The same interface everywhere:
//   begin(init, ...)           vector 0: the initial state, or zeros
//   wait(chain, s)             vector s of a chain is complete
//   load(chain, s, ...)        16-byte B fragments of vector s
//   publish(chain, s, ...)     this warp's 2 or 4 consecutive elements of vector s + 1, per lane
//   end()                      after the last step
// Where a vector is a message of its own (CTA, cluster) the producer publishes the state of rows that start anew, so
// readers know nothing of cuts; where the output is the message (grid) the reader takes the row from the initial state
// or zeros.
//
// Two buffers are safe if only every chain's load of vector s comes before its publish of vector s + 1: vector s + 1 is
// complete only after every warp of every CTA of the team has consumed vector s.
#pragma once
#include "cuda/steps.h"
#include "cuda/words.h"

namespace fusedrnn::cuda {
// Vectors in shared memory: [2 buffers][chain][block of k][tile of rows][8 batch rows][64 bytes].
template <Instance I>
struct SmemVector {
  using L = Layout<I>;
  using Element = typename L::Element;
  static constexpr int kBlocks = L::kK / L::kBlock;
  static constexpr int kBytes = 2 * L::kChains * kBlocks * L::kTiles * 512;
  static constexpr int kChunk = L::kKTiles / 2 % 2 ? 1 : 2;  // blocks that are loaded at once
  char* buffers;

  static FUSEDRNN_DEVICE int offset(int buffer, int chain, int block, int tile) {
    return (((buffer * L::kChains + chain) * kBlocks + block) * L::kTiles + tile) * 512;
  }
  template <int kCount>
  FUSEDRNN_DEVICE void load(uint4 (&f)[kCount][L::kTiles], int chain, int s, int block, const Params&, const Place<I>&,
                            const Steps<I>&, int) const {
    for (int i = 0; i < kCount; ++i)
      for (int n = 0; n < L::kTiles; ++n)
        f[i][n] = *reinterpret_cast<const uint4*>(buffers + offset(s & 1, chain, block + i, n) + lane_id() * 16);
  }
  // Where this lane's elements of units k .. k + 15 of the vector go.
  static FUSEDRNN_DEVICE int place(int buffer, int chain, int k, int tile, int half) {
    return offset(buffer, chain, k / L::kBlock, tile) + (lane_id() >> 2) * 64 + k % L::kBlock * L::kBytes +
           (lane_id() & 3) * 4 * L::kBytes + 4 * L::kPair * half;
  }
  FUSEDRNN_DEVICE void fill(const char* init, const Params& p, const Place<I>& c) {
    constexpr int kPiece = 16 / L::kBytes;  // elements of a load
    for (int i = thread_id(); i < L::kChains * kBlocks * L::kTiles * 32; i += L::kThreads) {
      const int lane = i & 31, tile = (i >> 5) % L::kTiles, block = (i >> 5) / L::kTiles % kBlocks;
      const int chain = (i >> 5) / (L::kTiles * kBlocks);
      const int row = c.row0 + chain * I.rows + tile * 8 + (lane >> 2), k = block * L::kBlock + (lane & 3) * kPiece;
      bool real = init && row < p.B && k < L::hidden(p);
      if constexpr (L::kMasked) real = real && !(Steps<I>::cut_byte(p, c, chain, tile, 0) >> (lane >> 2) & 1);
      const uint4 v = ld16_if(init + c.edge(p, row) + k * L::kBytes, real);
      *reinterpret_cast<uint4*>(buffers + offset(0, chain, block, tile) + lane * 16) = to_operands<Element>(v);
    }
  }
};

// One CTA: a barrier per chain and step.
template <Instance I>
struct CtaExchange : SmemVector<I> {
  using L = Layout<I>;
  using Vector = SmemVector<I>;
  FUSEDRNN_DEVICE CtaExchange(char* smem, const Params&, const Place<I>&, int) { this->buffers = smem; }
  FUSEDRNN_DEVICE void begin(const char* init, const Params& p, const Place<I>& c) { this->fill(init, p, c); }
  FUSEDRNN_DEVICE void wait(int, int) { cta_sync(); }
  FUSEDRNN_DEVICE void publish(int chain, int s, int k, int tile, int half, const uint32_t (&words)[L::kWords]) {
    uint32_t w[L::kWords];
    to_operands<typename L::Element>(w, words);
    store_shared(this->buffers + Vector::place((s + 1) & 1, chain, k, tile, half), w);
  }
  FUSEDRNN_DEVICE void end() {}
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// Cluster: every warp stores its elements straight into the buffers of all CTAs (st.async); the bytes complete the
// transaction count of an mbarrier in each destination. No barrier of any kind in the loop.
template <Instance I>
struct ClusterExchange : SmemVector<I> {
  using L = Layout<I>;
  using Vector = SmemVector<I>;
  static constexpr int kVectorBytes = L::kK * I.rows * L::kBytes;
  uint64_t* barriers;  // [2][chain]
  int steps;

  FUSEDRNN_DEVICE ClusterExchange(char* smem, const Params&, const Place<I>&, int steps_) : steps(steps_) {
    this->buffers = smem;
    barriers = reinterpret_cast<uint64_t*>(smem + Vector::kBytes);
  }
  FUSEDRNN_DEVICE void begin(const char* init, const Params& p, const Place<I>& c) {
    this->fill(init, p, c);
    if (thread_id() == 0) {
      for (int i = 0; i < 2 * L::kChains; ++i) mbar_init(barriers + i, 1);
      mbar_init_fence();
      for (int i = 0; i < 2 * L::kChains; ++i) mbar_arrive_expect(barriers + i, kVectorBytes);
    }
    cta_sync();
    cluster_sync();
  }
  FUSEDRNN_DEVICE void wait(int chain, int s) {
    if (s == 0) return;
    uint64_t* const barrier = barriers + (s & 1) * L::kChains + chain;
    mbar_wait(barrier, ((s - 1) >> 1) & 1);
    if (thread_id() == 0) mbar_arrive_expect(barrier, kVectorBytes);  // for vector s + 2
  }
  FUSEDRNN_DEVICE void publish(int chain, int s, int k, int tile, int half, const uint32_t (&words)[L::kWords]) {
    if (s + 1 >= steps) return;  // nobody waits for it
    uint32_t w[L::kWords];
    to_operands<typename L::Element>(w, words);
    const char* const to = this->buffers + Vector::place((s + 1) & 1, chain, k, tile, half);
    const uint64_t* const barrier = barriers + ((s + 1) & 1) * L::kChains + chain;
#pragma unroll
    for (int r = 0; r < L::kTeam; ++r) {
      const Dsm there = dsm_map(to, r), count = dsm_map(barrier, r);
      if constexpr (L::kWords == 4)
        st_async16(there, count, bits_float(w[0]), bits_float(w[1]), bits_float(w[2]), bits_float(w[3]));
      else if constexpr (L::kWords == 2)
        st_async8(there, count, make_uint2(w[0], w[1]));
      else
        st_async4(there, count, w[0]);
    }
  }
  FUSEDRNN_DEVICE void end() { cluster_sync(); }  // no CTA leaves while others still write to it
};
#endif
}  // namespace fusedrnn::cuda
