#include "cpu/plan.h"

#include <algorithm>

#include "cpu/blocks.h"

namespace fusedrnn::cpu {
namespace {
constexpr int64_t kWorthABarrier =
    20 << 10;  // FLOP of a step below which the barrier costs more than a second thread saves
constexpr int64_t kProjectionRows =
    192;  // rows projected at once: enough to read W_ih once for many, few enough for L2
constexpr int64_t kBfloatProjectionRows = 64;  // likewise, beside both weights in tiles
constexpr int64_t kRingRows = 256;             // rows of gate gradients between two rounds of dW and dx

// Where packed weights repay their packing, by timing both: forward from H / kPackedFor rows in all, in bfloat16 from
// more than kBfloatRowsInPlace (which one tile must hold); backward, whose weights need no transposition, where more
// steps or longer rows than these read them.
constexpr int64_t kBfloatRowsInPlace = 4, kPackedFor = 12, kStepsInPlace = 16, kUnitStepsInPlace = 4096;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Streams first and then rows: their threads never wait for each other. Hidden units (one barrier a step) where the
// weights of a stream are larger than one core's L2, or rows are too few to fill a block of the product.
Plan share_work(const Problem& p, const Machine& machine, int64_t weight_bytes, int element_bytes,
                int64_t column_blocks) {
  Plan plan;
  int left = machine.threads;
  const int64_t fits = machine.l2_bytes * 4 / 5;
  // a row that is normalised stays with one thread
  const bool a_share_fits = !p.normed && weight_bytes > fits && weight_bytes / left <= fits && p.S < 2 * left;
  if (machine.split != Split::automatic || !a_share_fits) {
    int n = int(std::min<int64_t>(left, p.S));
    if (p.S < 4 * left)
      while (left % n || p.S % n) n--;
    plan.streams = n;
    left /= n;
  }
  const int64_t rows_to_fill = int64_t(block_rows(machine.registers, 3)) * left;
  // A single step is over before all weights are packed: there, every thread packs what only it reads.
  const bool rows_suffice = p.B >= rows_to_fill && weight_bytes <= fits && p.T > 1;
  const bool worth_a_barrier = 2 * p.B * weight_bytes / element_bytes >= kWorthABarrier;
  if (p.normed || machine.split == Split::batch || (machine.split == Split::automatic && rows_suffice))
    plan.batches = int(std::clamp<int64_t>(p.B, 1, left));
  else if (machine.split == Split::columns || worth_a_barrier)
    plan.columns = int(std::clamp<int64_t>(column_blocks, 1, left));
  return plan;
}

int64_t weight_bytes(const Problem& p, int gates, int element_bytes, const Machine& machine) {
  const int64_t lanes = machine.vector_bytes / std::max(element_bytes, 4);
  return p.H * gates * ceil_div(p.H, lanes) * lanes * element_bytes;
}
}  // namespace

Plan plan_forward(const Problem& p, int gates, int element_bytes, const Machine& machine) {
  const int64_t bytes = weight_bytes(p, gates, element_bytes, machine),
                vectors = ceil_div(p.H, machine.vector_bytes / std::max(element_bytes, 4));
  Plan plan = share_work(p, machine, bytes, element_bytes, ceil_div(vectors, gates == 1 ? kMaxPanel : 1));
  const int64_t rows = ceil_div(p.B, plan.batches);
  // Half as wide a block lets all rows share one pass over the weights.
  const bool one_pass = rows > block_rows(machine.registers, 4) && rows <= block_rows(machine.registers, 2);
  if (gates == 4 && (one_pass || bytes / plan.columns > machine.l2_bytes)) plan.lstm_cols = 2;
  plan.chunk = p.I ? std::clamp<int64_t>(ceil_div(element_bytes == 2 ? kBfloatProjectionRows : kProjectionRows,
                                                  std::max<int64_t>(rows, 1)),
                                         1, p.T)
                   : 1;
  // Packing pays from so many rows on; dot products cost H / lanes multiplications and about three exchanges each.
  // Not in double, where results are not to depend on how many steps a call takes.
  plan.in_place =
      element_bytes == 2 ? p.T * p.B <= kBfloatRowsInPlace : element_bytes == 4 && kPackedFor * p.T * p.B <= p.H;
  return plan;
}

Plan plan_backward(const Problem& p, int gates, int element_bytes, const Machine& machine) {
  const int64_t bytes = weight_bytes(p, gates, element_bytes, machine),
                vectors = ceil_div(p.H, machine.vector_bytes / element_bytes);
  Plan plan = share_work(p, machine, bytes, element_bytes, ceil_div(vectors, kMaxPanel));
  const int64_t rows = std::max<int64_t>(ceil_div(p.B, plan.batches), 1),
                ring_rows = p.H >= 512 ? 2 * kRingRows : kRingRows;
  plan.chunk = std::max<int64_t>(std::min<int64_t>(2, p.T), std::min(p.T, ceil_div(ring_rows, rows)));
  const int64_t lanes = machine.vector_bytes / element_bytes;
  plan.in_place = p.T <= kStepsInPlace && p.T * p.H <= kUnitStepsInPlace && p.H % lanes == 0 && p.I % lanes == 0;
  return plan;
}
}  // namespace fusedrnn::cpu
