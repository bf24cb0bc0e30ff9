#pragma once
// Convolution with three taps along one axis in fewer products than taps, without torch.
//
// A piece computes a few neighbouring outputs y = g0 x[-1] + g1 x[0] + g2 x[1] of a line as
//   y = output * ((taps * g) .* (input * x)),
// with small matrices of constants: `input` of the pixels, `taps` of the kernel (transformed once,
// the rows are shared by all pieces), `output` of the products. Two axes nest. The line is one
// residue class of a dilated convolution, so it is short: 33 pixels at rate 12 are lines of 2 or 3.
//
//   piece    outputs products  where
//   Pair           2        4  anywhere: Winograd's F(2, 3) (Lavin and Gray 2016, 1509.09308)
//   Four           4        6  anywhere: F(4, 3), whose rounding errors are about 10 times as large
//   Last           1        2  the line's last pixel
//   One            1        1  a line of one pixel
//   Two            2        3  a line of two (Karatsuba)
//   Three          3        5  a line of three: F(2, 3) with x[-1] = 0, one of whose products the
//                              last pixel needs, too
//
// All but Four read, to compute an output, no pixel that the output does not depend on, so that a
// NaN stays where direct convolution has it.

#include <array>
#include <cstdint>

namespace fastseg::cpu {

// The rows of `taps`, by number: each is a combination of (g0, g1, g2).
inline constexpr int kTapRows = 11;
inline constexpr double kTaps[kTapRows][3] = {
    {1, 0, 0},                    // 0
    {0, 1, 0},                    // 1
    {0, 0, 1},                    // 2
    {0.5, 0.5, 0.5},              // 3
    {0.5, -0.5, 0.5},             // 4
    {1, -1, 0},                   // 5
    {0, -1, 1},                   // 6
    {-1. / 6, -1. / 6, -1. / 6},  // 7
    {-1. / 6, 1. / 6, -1. / 6},   // 8
    {1. / 24, 1. / 12, 1. / 6},   // 9
    {1. / 24, -1. / 12, 1. / 6},  // 10
};

enum class PieceKind : int { pair, four, last, one, two, three };
inline constexpr int kPieceKinds = 6;
inline constexpr int kMostProducts = 6, kMostInputs = 6;

struct Pair {
  static constexpr int kOutputs = 2, kInputs = 4, kProducts = 4;
  static constexpr int kFirst = -1;  // the first pixel that is read, from the first output
  static constexpr int kRows[] = {0, 3, 4, 2};
  static constexpr float kInput[4][4] = {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, 1, 0, -1}};
  static constexpr float kOutput[2][4] = {{1, 1, 1, 0}, {0, 1, -1, -1}};
};

// The row (1/4, 0, 0) of F(4, 3)'s taps is g0 with the quarter in its input.
struct Four {
  static constexpr int kOutputs = 4, kInputs = 6, kProducts = 6, kFirst = -1;
  static constexpr int kRows[] = {0, 7, 8, 9, 10, 2};
  static constexpr float kInput[6][6] = {{1, 0, -1.25f, 0, 0.25f, 0}, {0, -4, -4, 1, 1, 0},
                                         {0, 4, -4, -1, 1, 0},        {0, -2, -1, 2, 1, 0},
                                         {0, 2, -1, -2, 1, 0},        {0, 4, 0, -5, 0, 1}};
  static constexpr float kOutput[4][6] = {
      {1, 1, 1, 1, 1, 0}, {0, 1, -1, 2, -2, 0}, {0, 1, 1, 4, 4, 0}, {0, 1, -1, 8, -8, 1}};
};

struct Last {
  static constexpr int kOutputs = 1, kInputs = 2, kProducts = 2, kFirst = -1;
  static constexpr int kRows[] = {0, 1};
  static constexpr float kInput[2][2] = {{1, 0}, {0, 1}};
  static constexpr float kOutput[1][2] = {{1, 1}};
};

struct One {
  static constexpr int kOutputs = 1, kInputs = 1, kProducts = 1, kFirst = 0;
  static constexpr int kRows[] = {1};
  static constexpr float kInput[1][1] = {{1}};
  static constexpr float kOutput[1][1] = {{1}};
};

struct Two {
  static constexpr int kOutputs = 2, kInputs = 2, kProducts = 3, kFirst = 0;
  static constexpr int kRows[] = {1, 6, 5};
  static constexpr float kInput[3][2] = {{1, 1}, {0, 1}, {1, 0}};
  static constexpr float kOutput[2][3] = {{1, 1, 0}, {1, 0, 1}};
};

struct Three {
  static constexpr int kOutputs = 3, kInputs = 3, kProducts = 5, kFirst = 0;
  static constexpr int kRows[] = {0, 3, 4, 2, 1};
  static constexpr float kInput[5][3] = {{0, 1, 0}, {1, 1, 0}, {-1, 1, 0}, {1, 0, -1}, {0, 0, 1}};
  static constexpr float kOutput[3][5] = {{-1, 1, 1, 0, 0}, {0, 1, -1, -1, 0}, {1, 0, 0, 0, 1}};
};

// What there is to know of a piece at run time.
struct PieceShape {
  int outputs, inputs, products, first;
  const int* rows;
};

template <class P>
constexpr PieceShape shape_of() {
  return {P::kOutputs, P::kInputs, P::kProducts, P::kFirst, P::kRows};
}

// By PieceKind.
inline constexpr std::array<PieceShape, kPieceKinds> kPieces = {
    shape_of<Pair>(), shape_of<Four>(), shape_of<Last>(),
    shape_of<One>(),  shape_of<Two>(),  shape_of<Three>()};

}  // namespace fastseg::cpu
