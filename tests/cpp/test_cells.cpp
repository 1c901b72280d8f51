// Every cell's hand-written backward against finite differences of its forward, in double, at random points. No torch,
// no framework: prints what differs and returns 1.
#include <cmath>
#include <cstdio>
#include <random>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

namespace {
constexpr double kStep = 1e-6, kTolerance = 1e-8;  // central differences: error about kStep^2 + 1e-16 / kStep
constexpr int kTrials = 200;
int failures = 0;

void expect(const char* cell, const char* what, int index, double got, double expected) {
  if (fabs(got - expected) <= kTolerance * (1 + fabs(expected))) return;
  std::printf("%s: %s[%d]: got %.12g, expected %.12g\n", cell, what, index, got, expected);
  ++failures;
}

// One step as a function of everything it depends on: pre-activations, h and c.
template <class Cell>
struct Point {
  double a[Cell::kParts], h, c;
};

// The scalar whose gradient backward computes: the step's outputs and kept values, each weighted by its upstream
// gradient.
template <class Cell>
double weighted_sum(Point<Cell> p, double dh, double dc, const double* dkept) {
  double kept[Cell::kKept + 1], c = p.c;
  const double h = Cell::forward(p.a, p.h, c, kept);
  double sum = dh * h + (Cell::kHasC ? dc * c : 0);
  for (int i = 0; i < Cell::kKept; ++i) sum += dkept[i] * kept[i];
  return sum;
}

template <class Cell>
double difference(const Point<Cell>& p, double Point<Cell>::* member, double dh, double dc, const double* dkept) {
  Point<Cell> above = p, below = p;
  above.*member += kStep, below.*member -= kStep;
  return (weighted_sum(above, dh, dc, dkept) - weighted_sum(below, dh, dc, dkept)) / (2 * kStep);
}

template <class Cell>
void check_backward(const char* name) {
  std::mt19937_64 engine(7);
  std::normal_distribution<double> normal;
  for (int trial = 0; trial < kTrials; ++trial) {
    Point<Cell> p;
    for (double& a : p.a) {
      a = normal(engine);
      if (fabs(a) < 2 * kStep) a = 2 * kStep;  // relu has no derivative at 0
    }
    p.h = normal(engine), p.c = normal(engine);
    const double dh = normal(engine), dc = normal(engine);
    double kept[Cell::kKept + 1], dkept[Cell::kKept + 1], da[Cell::kParts];
    for (double& d : dkept) d = trial % 2 ? normal(engine) : 0;  // even trials: a first derivative

    double c = p.c;
    const double y = Cell::forward(p.a, p.h, c, kept);
    double dc_before = dc;
    const double dh_before = Cell::backward(dh, kept, dkept, p.h, y, p.c, c, dc_before, da);

    for (int i = 0; i < Cell::kParts; ++i) {
      Point<Cell> above = p, below = p;
      above.a[i] += kStep, below.a[i] -= kStep;
      const double slope = weighted_sum(above, dh, dc, dkept) - weighted_sum(below, dh, dc, dkept);
      expect(name, "gradient of pre-activation", i, da[i], slope / (2 * kStep));
    }
    expect(name, "gradient of h past the product", 0, dh_before, difference(p, &Point<Cell>::h, dh, dc, dkept));
    if (Cell::kHasC) expect(name, "gradient of c", 0, dc_before, difference(p, &Point<Cell>::c, dh, dc, dkept));
  }
}

// The equations once more, written out by hand: backward agrees with forward, but is forward the cell it is named
// after?
void check_forward() {
  const auto s = [](double x) { return 1 / (1 + exp(-x)); };
  const double a[4] = {.3, -.7, 1.1, .5}, h = -.4, before = .9;
  double kept[4], c = before, none = 0;
  const double n = tanh(a[2] + s(a[0]) * a[3]);
  expect("GRU", "h'", 0, fusedrnn::Gru::forward(a, h, none, kept), (1 - s(a[1])) * n + s(a[1]) * h);
  const double gru_kept[4] = {s(a[0]), s(a[1]), n, a[3]};
  for (int i = 0; i < 4; ++i) expect("GRU", "kept", i, kept[i], gru_kept[i]);

  const double c_after = s(a[1]) * before + s(a[0]) * tanh(a[2]);
  expect("LSTM", "h'", 0, fusedrnn::Lstm::forward(a, h, c, kept), s(a[3]) * tanh(c_after));
  expect("LSTM", "c'", 0, c, c_after);
  const double lstm_kept[4] = {s(a[0]), s(a[1]), tanh(a[2]), s(a[3])};
  for (int i = 0; i < 4; ++i) expect("LSTM", "kept", i, kept[i], lstm_kept[i]);

  expect("RNN tanh", "h'", 0, fusedrnn::Rnn<false>::forward(a, h, none, kept), tanh(a[0]));
  expect("RNN relu", "h'", 0, fusedrnn::Rnn<true>::forward(a, h, none, kept), a[0]);
  expect("RNN relu", "h'", 1, fusedrnn::Rnn<true>::forward(a + 1, h, none, kept), 0);
  const double nan_in[1] = {NAN}, relu = fusedrnn::Rnn<true>::forward(nan_in, h, none, kept);
  if (!std::isnan(relu)) expect("RNN relu", "h' of NaN", 0, relu, NAN);
}
}  // namespace

int main() {
  check_forward();
  check_backward<fusedrnn::Gru>("GRU");
  check_backward<fusedrnn::Lstm>("LSTM");
  check_backward<fusedrnn::Rnn<false>>("RNN tanh");
  check_backward<fusedrnn::Rnn<true>>("RNN relu");
  std::printf("cells: %d differences\n", failures);
  return failures != 0;
}
