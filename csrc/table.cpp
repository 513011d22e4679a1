// The table of one instruction set.
#include "isa.h"

namespace bise {
namespace {

void linear(const Matrix& w, const void* x, i64 T, i64 p0, i64 p1, float* y) {
    return (is_float(w.type) ? BISE_ISA::linear_floats : BISE_ISA::linear_quants)(w, x, T, p0, p1, y);
}

#define BISE_STRING_(x) #x
#define BISE_STRING(x) BISE_STRING_(x)
#define BISE_JOIN_(a, b) a##b
#define BISE_JOIN(a, b) BISE_JOIN_(a, b)

}  // namespace

// (compiled for this instruction set: nothing here may run before cpu.cpp has checked for it)
const Kernels BISE_JOIN(kernels_, BISE_ISA) = {BISE_STRING(BISE_ISA),
                                               BISE_ISA::dequantise,
                                               BISE_ISA::look_up,
                                               BISE_ISA::quantise256,
                                               BISE_ISA::quantise32,
                                               BISE_ISA::quantise_gradients,
                                               linear,
                                               BISE_ISA::down,
                                               BISE_ISA::up,
                                               BISE_ISA::turn,
                                               BISE_ISA::rms_norm,
                                               BISE_ISA::rope,
                                               BISE_ISA::swiglu,
                                               BISE_ISA::rms_norm_back,
                                               BISE_ISA::swiglu_back,
                                               BISE_ISA::store_ring,
                                               BISE_ISA::attend,
                                               BISE_ISA::round_rows,
                                               BISE_ISA::in_turn,
                                               BISE_ISA::spread};

}  // namespace bise
