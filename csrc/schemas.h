// The schemas of the ops that several libraries implement. fusedrnn/ops.py says what the arguments are.
#pragma once

namespace fusedrnn {
constexpr char kScanSchema[] =
    "scan(Tensor gates_x, Tensor? h0, Tensor? c0, Tensor weight_hh, Tensor? bias_hh, Tensor? lengths, Tensor? reset, "
    "Tensor? reset_h, Tensor? reset_c, Tensor? offsets, Tensor? mask_key, float[] rates, int cell, int directions, "
    "bool save, Tensor? x=None, Tensor? weight_ih=None, Tensor? bias_ih=None, int route=0)"
    " -> (Tensor y, Tensor hn, Tensor gates, Tensor cs, Tensor cn)";
constexpr char kScanBackwardSchema[] =
    "scan_backward(Tensor? dy, Tensor? dhn, Tensor? dgates, Tensor? dcs, Tensor? dcn, Tensor gates, Tensor y, "
    "Tensor? h0, Tensor? cs, Tensor? c0, Tensor weight_hh, Tensor? lengths, Tensor? reset, int cell, int directions, "
    "int route=0, Tensor? offsets=None) -> (Tensor dgates_x, Tensor dh0, Tensor dc0, Tensor dq)";
}  // namespace fusedrnn
