// The schemas of the ops that several libraries implement; shapes and results are those of fusedrnn/reference.py.
//   save: return the gates that backward reads. x, weight_ih, bias_ih: what backward may rebuild them from instead.
//   route: how CUDA runs it, a regime (0 as planned, 1 step, 2 cta, 3 cluster, 4 grid) plus 8 if float32 may be
//     multiplied as TF32; 0 on the CPU.
//   rates: probabilities of zoneout of h, zoneout of c and recurrent dropout, or none; mask_key: int64 [2], what the masks
//     are drawn by (fusedrnn/philox.py), without it zoneout's expectation.
//   reset_h, reset_c [S, H]: where a reset goes back to, without them zeros; their gradients come for each row, [S, B, H].
//   gain_hh [S, G H], gain_c and shift_c [S, H]: of layer normalisation. products [T, B, S, G H]: W_hh h before it. dq is
//     the gradient of what the GRU's r multiplies, and of the LSTM's normalised c.
//   offsets: CUDA only. int64 [T]: sequences are [N, 1, S, ...], step t's rows from row offsets[t] on; lengths [S, B] say
//     how many they are. The values are trusted.
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
    "int route=0, Tensor? offsets=None, Tensor? mask_key=None, float[] rates=[])"
    " -> (Tensor dgates_x, Tensor dh0, Tensor dc0, Tensor dq)";
constexpr char kNormScanSchema[] =
    "norm_scan(Tensor gates_x, Tensor? h0, Tensor? c0, Tensor weight_hh, Tensor? bias_hh, Tensor? lengths, "
    "Tensor? reset, Tensor? reset_h, Tensor? reset_c, Tensor? gain_hh, Tensor? gain_c, Tensor? shift_c, "
    "Tensor? mask_key, float[] rates, int cell, int directions, bool save, int route=0)"
    " -> (Tensor y, Tensor hn, Tensor gates, Tensor cs, Tensor cn, Tensor products)";
constexpr char kNormScanBackwardSchema[] =
    "norm_scan_backward(Tensor? dy, Tensor? dhn, Tensor? dcs, Tensor? dcn, Tensor gates, Tensor y, Tensor? h0, "
    "Tensor? cs, Tensor? c0, Tensor weight_hh, Tensor products, Tensor? lengths, Tensor? reset, Tensor? reset_h, "
    "Tensor? reset_c, Tensor? gain_hh, Tensor? gain_c, Tensor? shift_c, Tensor? mask_key, float[] rates, int cell, "
    "int directions, int route=0)"
    " -> (Tensor dgates_x, Tensor dh0, Tensor dc0, Tensor dq, Tensor dproducts, Tensor dreset_h, Tensor dreset_c)";
}  // namespace fusedrnn
