// What each translation unit of one instruction set exports to table.cpp. BISE_ISA (base, avx2 ...) comes from CMake.
#pragma once
#include "kernels.h"

namespace bise::BISE_ISA {

void dequantise(Type type, const uint8_t* p, i64 n, float* y);
void look_up(const float* levels, const uint8_t* p, const float* scales, i64 blocks, float* y);
void quantise256(const float* x, i64 cols, i64 T, i64 t0, i64 t1, Act256* out);
void quantise32(const float* x, i64 cols, i64 T, i64 t0, i64 t1, Act32* out);
void quantise_gradients(const float* x, i64 cols, i64 T, i64 t0, i64 t1, Act32* out);
void linear_quants(const Matrix& w, const void* x, i64 T, i64 p0, i64 p1, float* y);
void linear_floats(const Matrix& w, const void* x, i64 T, i64 p0, i64 p1, float* y);
void down(const Matrix& a, const float* x, i64 T, i64 p, i64 width, float* low);
void up(const Matrix& b, const float* low, i64 width, i64 T, i64 p0, i64 p1, const float* factor, float* y);
void turn(const Matrix& w, i64 c, i64 n, uint8_t* panels, i64 panel_bytes);
void rms_norm(const float* x, const float* w, float eps, i64 n, i64 t0, i64 t1, float* y);
void rope(float* x, const float* cos, const float* sin, i64 heads, i64 half, i64 t0, i64 t1);
void swiglu(const float* gate, const float* up, i64 n, float* y);
void rms_norm_back(const float* x, const float* w, float eps, i64 n, i64 t0, i64 t1, const float* dy, float* dx);
void swiglu_back(const float* gate, const float* up, const float* dy, i64 n, float* dgate, float* dup);
void store_ring(const RingView& ring, const Span& span, i64 i0, i64 i1, const float* k, const float* v);
void attend(const RingView& ring, const Queries& unit, i64 R, i64 window, const float* q, float* out, void* scratch);

int round_rows(Type type, const float* x, i64 cols, int rows, const float* importance, uint8_t* out, i64 row_bytes);
void in_turn(const Columns& columns, i64 row, int rows, Moves* moves);
void spread(const Columns& columns, const Moves* moves, i64 row, i64 rows, float* pull);

}  // namespace bise::BISE_ISA
