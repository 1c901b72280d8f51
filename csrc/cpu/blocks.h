// Shape of the register block of the matrix product: what the micro-kernel is built with and what the planner counts
// with.
#pragma once

namespace fusedrnn::cpu {
constexpr int kMaxCols = 4, kMaxRows = 8;  // columns (in vectors) and rows of a block of accumulators
constexpr int kMaxPanel = 3;               // vectors of hidden units taken together where a unit has one gate only
// Rows that fit beside `cols` columns: 24 accumulators of 32 registers, or 12 of 16. With fewer rows than columns the A
// side is what stays in registers.
constexpr int block_rows(int registers, int cols) {
  if (registers == 32) return cols == 4 ? 6 : 8;
  return cols == 1 ? 8 : 12 / cols;
}
}  // namespace fusedrnn::cpu
