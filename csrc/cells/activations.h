// What every cell is written with: the inlining mark, and the scalar twins of the functions that vector types bring
// along themselves. Plain C++: compiled by the host compiler and by nvcc; knows no torch and no CUDA header.
#pragma once
#include <math.h>
#if defined(__CUDACC__)
#define FUSEDRNN_CELL __host__ __device__ __forceinline__
#else
#define FUSEDRNN_CELL inline __attribute__((always_inline))
#endif

namespace fusedrnn {
// A cell calls these without a namespace: for a vector type its own overloads are found (argument-dependent lookup),
// for a float or a double the ones below.
FUSEDRNN_CELL double sigmoid(double x) { return 1 / (1 + ::exp(-x)); }
FUSEDRNN_CELL float sigmoid(float x) { return 1 / (1 + ::expf(-x)); }
FUSEDRNN_CELL double hyperbolic_tangent(double x) { return ::tanh(x); }
FUSEDRNN_CELL float hyperbolic_tangent(float x) { return ::tanhf(x); }
FUSEDRNN_CELL double multiply_add(double a, double b, double c) { return ::fma(a, b, c); }
FUSEDRNN_CELL float multiply_add(float a, float b, float c) { return ::fmaf(a, b, c); }
FUSEDRNN_CELL double subtract_product(double c, double a, double b) { return ::fma(-a, b, c); }
FUSEDRNN_CELL float subtract_product(float c, float a, float b) { return ::fmaf(-a, b, c); }
// max(x, 0), and a where x > 0 (else 0): a NaN in x comes through, as torch.relu lets it.
FUSEDRNN_CELL double positive_part(double x) { return x < 0 ? 0 : x; }
FUSEDRNN_CELL float positive_part(float x) { return x < 0 ? 0 : x; }
FUSEDRNN_CELL double where_positive(double x, double a) { return x <= 0 ? 0 : a; }
FUSEDRNN_CELL float where_positive(float x, float a) { return x <= 0 ? 0 : a; }
}  // namespace fusedrnn
