// Every instruction set that runs here against plain loops in double precision, without Python: a check for an emulator, and a
// quick one anywhere. On arm64 the sets have to agree to the bit as well; everywhere what is quantised and stored has to.
//   emulate [NAME]    NAME: the set that has to be the one chosen here
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>

#include "half.h"
#include "pack.h"
#include "round.h"
#include "run.h"

using namespace bise;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

namespace {

#ifdef BISE_ARM64
constexpr bool kSameBits = true;
#else
constexpr bool kSameBits = false;  // fused here, rounded twice there; sums of 16 lanes in another order
#endif
constexpr i64 kAll = i64{1} << 40;

std::mt19937 chance(1);
long checks = 0;
Pool pool(2);

float number() { return std::normal_distribution<float>()(chance); }
Floats numbers(i64 n) {
    Floats x(static_cast<size_t>(n));
    for (float& value : x) value = number();
    return x;
}

void same(const std::string& what, const Kernels& k, const void* got, const void* want, size_t bytes) {
    checks++;
    if (!std::memcmp(got, want, bytes)) return;
    size_t i = 0;
    while (static_cast<const char*>(got)[i] == static_cast<const char*>(want)[i]) i++;
    std::printf("%s: %s and base differ, first in byte %zu of %zu\n", what.c_str(), k.name, i, bytes);
    std::exit(1);
}

// within `bound` times the largest magnitude that is wanted
void near(const std::string& what, const Kernels& k, const Floats& got, const Doubles& want, double bound) {
    checks++;
    double top = 0;
    for (double value : want) top = std::fmax(top, std::fabs(value));
    for (size_t i = 0; i < want.size(); i++) {
        if (std::fabs(got[i] - want[i]) <= bound * top) continue;
        std::printf("%s: %s has %.9g at %zu of %zu where plain loops have %.9g\n", what.c_str(), k.name,
                    static_cast<double>(got[i]), i, want.size(), want[i]);
        std::exit(1);
    }
}

// what `run` computes on every set, against `want` and against base
void check(const std::string& what, const Doubles& want, const std::function<Floats(const Kernels&)>& run) {
    const Floats base = run(kernels_base);
    for (const Kernels* k : kernels_here()) {
        const Floats got = run(*k);
        near(what, *k, got, want, 1e-5);
        if (kSameBits) same(what, *k, got.data(), base.data(), sizeof(float) * base.size());
    }
}

// Rows as a file has them: random bytes, with float16 scales of a sound size at these bytes of a block.
constexpr i64 kScale[kTypes] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 80, 108, 0, 0, 208, 0};
constexpr i64 kOther[kTypes] = {0, 0, 0, 0, 0, 2, 0, 2, 0, 82, 108, 2, 2, 208, 0};
std::vector<uint8_t> file_rows(Type type, i64 rows, i64 cols) {
    const i64 step = block_columns(type), bytes = row_bytes(type, step);
    std::vector<uint8_t> file(static_cast<size_t>(rows * row_bytes(type, cols)));
    for (uint8_t& byte : file) byte = static_cast<uint8_t>(chance());
    for (uint8_t* p = file.data(); p < file.data() + file.size(); p += bytes) {
        const uint32_t bits = bits_of(number()), sign = bits >> 31 << 15;
        const uint32_t half = sign | (type == Type::F16 ? chance() % 0x4000 : 0x2000 + chance() % 0x400);
        if (type == Type::F32 || type == Type::BF16)
            std::memcpy(p, reinterpret_cast<const uint8_t*>(&bits) + 4 - bytes, static_cast<size_t>(bytes));
        else
            for (i64 at : {kScale[static_cast<int>(type)], kOther[static_cast<int>(type)]}) std::memcpy(p + at, &half, 2);
    }
    return file;
}

// column k of a block: the layouts of pack.cpp, one number at a time
float column(Type type, const uint8_t* p, int k) {
    constexpr float iq4[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    const auto half = [&](int at) { return from_f16(read<uint16_t>(p + at)); };
    const auto bits = [&](int at, int shift, int n) { return p[at] >> shift & ((1 << n) - 1); };
    const auto four = [&](int at) { return bits(at + k % 16, k % 32 / 16 * 4, 4); };
    const auto two = [&](int at) { return bits(at + k / 128 * 32 + k % 32, k % 128 / 32 * 2, 2); };
    const auto five = [&](int at) { return four(at + 4) | bits(at + k / 8, k % 8, 1) << 4; };
    const int s = k / 16, g = k / 32;
    if (type == Type::F32) return read<float>(p);
    if (type == Type::BF16) return from_bf16(read<uint16_t>(p));
    if (type == Type::F16) return half(0);
    if (type == Type::Q8_0) return half(0) * static_cast<int8_t>(p[2 + k]);
    if (type == Type::Q4_0) return half(0) * (four(2) - 8);
    if (type == Type::Q4_K || type == Type::Q5_K) {
        const int at = type == Type::Q4_K ? 16 : 48, top = type == Type::Q5_K ? bits(16 + k % 32, g, 1) << 4 : 0;
        const int scale = g < 4 ? bits(4 + g, 0, 6) : bits(8 + g, 0, 4) | bits(g, 6, 2) << 4;
        const int minimum = g < 4 ? bits(8 + g, 0, 6) : bits(8 + g, 4, 4) | bits(4 + g, 6, 2) << 4;
        return half(0) * scale * (bits(at + g / 2 * 32 + k % 32, g % 2 * 4, 4) | top) - half(2) * minimum;
    }
    if (type == Type::Q6_K) {
        const int h = k / 128, low = bits(64 * h + k % 64, k % 128 / 64 * 4, 4);
        const int q = low | bits(128 + 32 * h + k % 32, k % 128 / 32 * 2, 2) << 4;
        return half(208) * static_cast<int8_t>(p[192 + s]) * (q - 32);
    }
    if (type == Type::Q4_1) return half(0) * four(4) + half(2);
    if (type == Type::Q5_0) return half(0) * (five(2) - 16);
    if (type == Type::Q5_1) return half(0) * five(4) + half(2);
    if (type == Type::IQ4_NL) return half(0) * iq4[four(2)];
    if (type == Type::Q2_K) return half(80) * ((p[s] & 15) * two(16)) - half(82) * (p[s] >> 4);
    if (type == Type::Q3_K) {
        const int scale = bits(96 + s % 8, s / 8 * 4, 4) | bits(104 + s % 4, s / 4 * 2, 2) << 4;
        return half(108) * ((scale - 32) * (two(32) + 4 * bits(k % 32, k / 32, 1) - 4));
    }
    const int scale = bits(4 + s / 4, s / 2 % 2 * 4, 4) | bits(2 + s / 8, s / 2 % 4 * 2, 2) << 4;  // IQ4_XS
    return half(0) * (scale - 32) * iq4[four(8 + s / 2 * 16)];
}
Floats plain_rows(Type type, const uint8_t* p, i64 rows, i64 cols) {
    Floats plain(static_cast<size_t>(rows * cols));
    const i64 step = block_columns(type);
    for (i64 i = 0; i < rows * cols; i += step, p += row_bytes(type, step)) {
        for (int k = 0; k < step; k++) plain.data()[i + k] = column(type, p, k);
    }
    return plain;
}

// x (T, cols) as `linear` sees it: through 8 bits, but for float weights
template <class Act, class Quantise>
Floats rounded(const Floats& x, i64 cols, i64 T, Quantise Kernels::* quantise, float (*scale)(const Act&, i64)) {
    const size_t bytes = sizeof(Act) * static_cast<size_t>(padded(T) * ((cols + kColumns - 1) / kColumns));
    const Buffer base(bytes);
    (kernels_base.*quantise)(x.data(), cols, T, 0, T, base.as<Act>());
    for (const Kernels* k : kernels_here()) {
        const Buffer mine(bytes);
        (k->*quantise)(x.data(), cols, T, 0, T, mine.as<Act>());
        same("quantise " + std::to_string(T) + " x " + std::to_string(cols), *k, mine.bytes(), base.bytes(), bytes);
    }
    Floats y(x.size());
    for (i64 i = 0; i < T * cols; i++) {
        const i64 t = i / cols, c = i % cols;
        const Act& a = base.as<Act>()[c / kColumns * padded(T) + t];
        y[static_cast<size_t>(i)] = scale(a, c % kColumns) * static_cast<float>(a.q[c % kColumns]);
    }
    return y;
}
Floats seen(Type type, const Floats& x, i64 cols, i64 T) {
    if (is_float(type)) return x;
    if (by_256(type)) return rounded<Act256>(x, cols, T, &Kernels::quantise256, [](const Act256& a, i64) { return a.d; });
    return rounded<Act32>(x, cols, T, &Kernels::quantise32, [](const Act32& a, i64 c) { return a.d[c / 32]; });
}

void check_sick() {  // blocks with an infinity, a NaN, next to nothing, nothing and the largest numbers
    Floats x = numbers(2 * 1280);
    x[3] = INFINITY, x[257] = NAN;
    for (size_t i = 512; i < 1280; i++) x[i] *= i < 768 ? 1e-38f : i < 1024 ? 0.0f : 1e37f;
    seen(Type::Q8_0, x, 1280, 2);
    seen(Type::Q4_K, x, 1280, 2);
}

Matrix sized(Type type, i64 rows, i64 cols, bool packed) {
    return {type, rows, cols, (rows + kRows - 1) / kRows, (cols + kColumns - 1) / kColumns, rows, packed, {}};
}
Matrix packed_rows(Type type, const std::vector<uint8_t>& file, i64 rows, i64 cols) {
    Matrix w = sized(type, rows, cols, true);
    w.data = Buffer(static_cast<size_t>(w.panels * w.panel_bytes()));
    if (pack(pool, file.data(), w) != kSound) std::exit(1);
    return w;
}

void check_linear(Type type, i64 rows, i64 cols) {
    const std::vector<uint8_t> file = file_rows(type, rows, cols);
    const Matrix w = packed_rows(type, file, rows, cols);
    const Floats plain = plain_rows(type, file.data(), rows, cols);
    check("dequantise", Doubles(plain.begin(), plain.end()), [&](const Kernels& k) {
        Floats y(plain.size());
        dequantise(k, pool, type, file.data(), rows, cols, y.data());
        return y;
    });
    for (i64 T : {1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 67}) {
        const Floats x = numbers(T * cols), at = seen(type, x, cols, T);
        near("quantise", kernels_base, at, Doubles(x.begin(), x.end()), 0.004);
        Doubles want(static_cast<size_t>(T * rows));
        for (i64 i = 0; i < T * rows; i++)
            for (i64 c = 0; c < cols; c++) {
                want[static_cast<size_t>(i)] += static_cast<double>(plain[static_cast<size_t>(i % rows * cols + c)]) *
                                                static_cast<double>(at[static_cast<size_t>(i / rows * cols + c)]);
            }
        check("linear of type " + std::to_string(static_cast<int>(type)) + ", " + std::to_string(rows) + " x " +
                  std::to_string(cols) + ", T " + std::to_string(T),
              want, [&](const Kernels& k) {
                  Floats y(want.size());
                  linear(k, pool, x.data(), T, {&w}, {y.data()});
                  return y;
              });
    }
}

// an adapter on some of the rows of a y
void check_adapt(i64 rank, i64 cols, i64 rows) {
    const auto packed = [](const Floats& values, i64 n) {
        Matrix w = sized(Type::F32, n, static_cast<i64>(values.size()) / n, true);
        w.data = Buffer(static_cast<size_t>(w.panels * w.panel_bytes()));
        pack(pool, reinterpret_cast<const uint8_t*>(values.data()), w);
        return w;
    };
    const i64 T = 31;
    const Floats x = numbers(T * cols), before = numbers(T * rows), factor = numbers(rows), down = numbers(rank * cols),
                 up = numbers(rows * rank);
    const Matrix a = packed(down, rank), b = packed(up, rows);
    for (i64 first : {0, 30, 29, 27, 22, 2}) {
        Doubles want(before.begin(), before.end());
        for (i64 t = first; t < T; t++) {
            Doubles low(static_cast<size_t>(rank));
            for (i64 i = 0; i < rank * cols; i++)
                low.data()[i / cols] += static_cast<double>(down.data()[i]) * x.data()[t * cols + i % cols];
            for (i64 i = 0; i < rows; i++) {
                for (i64 r = 0; r < rank; r++) want.data()[t * rows + i] += up.data()[i * rank + r] * low.data()[r];
                want.data()[t * rows + i] *= factor.data()[i];
            }
        }
        check("adapt of rank " + std::to_string(rank) + ", rows from " + std::to_string(first), want, [&](const Kernels& k) {
            Floats y(before);
            adapt(k, pool, x.data(), {{&a, &b, factor.data(), first, T, y.data()}});
            return y;
        });
    }
}

// rows as the file has them: as the packed ones on the way forward; on the way back within the rounding of W
void check_kept(Type type, i64 rows, i64 cols) {
    const std::vector<uint8_t> file = file_rows(type, rows, cols);
    const Matrix w = packed_rows(type, file, rows, cols);
    Matrix kept = sized(type, rows, cols, false);
    kept.data = Buffer(file.data(), file.size(), [](void*) {}, nullptr);
    const Floats plain = plain_rows(type, file.data(), rows, cols);
    for (i64 T : {1, 7, 50}) {
        const Floats x = numbers(T * cols), dy = numbers(T * rows),
                     at = rounded<Act32>(dy, rows, T, &Kernels::quantise_gradients,
                                         [](const Act32& a, i64 c) { return a.d[c / 32]; });
        Floats first;
        for (const Kernels* k : kernels_here()) {
            Floats y(dy.size()), z(dy.size()), dx(x.size());
            linear(*k, pool, x.data(), T, {&w}, {y.data()});
            linear(*k, pool, x.data(), T, {&kept}, {z.data()});
            same("linear of kept rows", *k, z.data(), y.data(), sizeof(float) * y.size());
            linear_back(*k, pool, {dy.data()}, T, {&kept}, dx.data());
            Doubles want(dx.size());
            for (size_t i = 0; i < want.size(); i++)
                for (size_t r = 0; r < static_cast<size_t>(rows); r++) {
                    const size_t t = i / static_cast<size_t>(cols), c = i % static_cast<size_t>(cols);
                    want[i] += static_cast<double>(at[t * static_cast<size_t>(rows) + r]) *
                               static_cast<double>(plain[r * static_cast<size_t>(cols) + c]);
                }
            near("linear_back of type " + std::to_string(static_cast<int>(type)), *k, dx, want, 0.02);
            if (first.empty()) first = dx;
            if (kSameBits) same("linear_back", *k, dx.data(), first.data(), sizeof(float) * dx.size());
        }
    }
}

// the ways back of RMSNorm and SwiGLU: x (T, n) goes in, and comes as the change of what went out
void check_back(i64 T, i64 n, const Floats& x, const Floats& w) {
    const Floats dy(x.rbegin(), x.rend());
    Doubles norm(x.size()), gates(x.size()), ups(x.size());
    for (size_t t = 0; t < static_cast<size_t>(T); t++) {
        const size_t row = t * static_cast<size_t>(n), end = row + static_cast<size_t>(n);
        double squares = 0, along = 0;
        for (size_t i = row; i < end; i++) {
            squares += static_cast<double>(x[i]) * x[i];
            along += static_cast<double>(x[i]) * w[i - row] * dy[i];
        }
        const double r = 1 / std::sqrt(squares / static_cast<double>(n) + 1e-5);
        for (size_t i = row; i < end; i++) {
            const double s = 1 / (1 + std::exp(-static_cast<double>(x[i])));
            norm[i] = r * w[i - row] * dy[i] - x[i] * r * r * r * along / static_cast<double>(n);
            gates[i] = dy[i] * s * (1 + x[i] * (1 - s)), ups[i] = dy[i] * x[i] * s;
        }
    }
    const std::string shape = std::to_string(T) + " x " + std::to_string(n);
    check("rms_norm_back " + shape, norm, [&](const Kernels& k) {
        Floats dx(x.size());
        rms_norm_back(k, pool, x.data(), w.data(), 1e-5f, T, n, dy.data(), dx.data());
        return dx;
    });
    for (const bool gate : {true, false}) {
        check("swiglu_back " + shape, gate ? gates : ups, [&](const Kernels& k) {
            Floats dgate(x.size()), dup(x.size());
            const Floats ones(x.size(), 1.0f);
            swiglu_back(k, pool, x.data(), ones.data(), dy.data(), T * n, dgate.data(), dup.data());
            return gate ? dgate : dup;
        });
    }
}

void check_small(i64 T, i64 n) {
    const Floats x = numbers(T * n), w = numbers(n);
    const size_t size = x.size();
    Doubles norm(size), silu(size), turned(2 * size);
    for (size_t i = 0; i < size; i++) {
        const size_t row = i / static_cast<size_t>(n) * static_cast<size_t>(n);
        double squares = 0;
        for (size_t j = row; j < row + static_cast<size_t>(n); j++) squares += static_cast<double>(x[j]) * x[j];
        norm[i] = x[i] / std::sqrt(squares / static_cast<double>(n) + 1e-5) * w[i - row];
        silu[i] = 40.0 * x[i] / (1 + std::exp(-40.0 * x[i])) * x[size - 1 - i];
    }
    const std::string shape = std::to_string(T) + " x " + std::to_string(n);
    check("rms_norm " + shape, norm, [&](const Kernels& k) {
        Floats y(size);
        rms_norm(k, pool, x.data(), w.data(), 1e-5f, T, n, y.data());
        return y;
    });
    check("swiglu " + shape, silu, [&](const Kernels& k) {
        Floats gate(x), up(x.rbegin(), x.rend());
        for (float& value : gate) value *= 40;
        swiglu(k, pool, gate.data(), up.data(), T * n, gate.data());
        return gate;
    });
    if (n > 1) check_back(T, n, x, w);    // the norm of one number is a constant
    const Floats v = numbers(2 * T * n);  // one head of n pairs; x and w stand for cosines and sines
    Floats cos(x), sin(x.rbegin(), x.rend());
    for (size_t i = 0; i < size; i++) {
        turned[2 * i] = static_cast<double>(v[2 * i]) * cos[i] - static_cast<double>(v[2 * i + 1]) * sin[i];
        turned[2 * i + 1] = static_cast<double>(v[2 * i]) * sin[i] + static_cast<double>(v[2 * i + 1]) * cos[i];
    }
    check("rope " + shape, turned, [&](const Kernels& k) {
        Floats y(v);
        rope(k, pool, y.data(), cos.data(), sin.data(), T, 1, n);
        return y;
    });
}

constexpr i64 S = 2, G = 2;
struct Ring {
    Buffer k, v, k_scale, v_scale;
    RingView view;
    Ring(Kv kv, i64 N, i64 D) {
        const auto numbers = static_cast<size_t>(S * G * N * D);
        k = Buffer(4 * numbers), v = Buffer(4 * numbers), k_scale = Buffer(2 * numbers), v_scale = Buffer(2 * numbers);
        view = {kv, S, G, N, D, k.bytes(), v.bytes(), k_scale.as<uint16_t>(), v_scale.as<uint16_t>()};
    }
    double at(const Buffer& values, const Buffer& scales, i64 slot, i64 d) const {
        const i64 i = slot * view.D + d;
        if (view.kv == Kv::F32) return values.as<float>()[i];
        if (view.kv == Kv::F16) return from_f16(values.as<uint16_t>()[i]);
        return static_cast<double>(from_f16(scales.as<uint16_t>()[i / 32])) * values.as<int8_t>()[i];
    }
};

Doubles attended(const Ring& ring, const Span& span, i64 R, i64 window, const Floats& q) {
    const i64 D = ring.view.D, N = ring.view.N;
    Doubles out(q.size());
    for (i64 i = 0; i < span.count * G * R; i++) {
        const i64 position = span.position + i / (G * R), g = i / R % G;
        double total = 0;
        for (i64 p = std::max<i64>(0, position - window + 1); p <= position; p++) {
            const i64 slot = (span.sequence * G + g) * N + p % N;
            double score = 0;
            for (i64 d = 0; d < D; d++) score += q[static_cast<size_t>(i * D + d)] * ring.at(ring.k, ring.k_scale, slot, d);
            const double weight = std::exp(score / std::sqrt(static_cast<double>(D)));
            total += weight;
            for (i64 d = 0; d < D; d++) out[static_cast<size_t>(i * D + d)] += weight * ring.at(ring.v, ring.v_scale, slot, d);
        }
        for (i64 d = 0; d < D; d++) out[static_cast<size_t>(i * D + d)] /= total;
    }
    return out;
}

// 130 tokens in chunks of 45, more than one unit of work, through a ring that they all fit into or one that is overwritten
void check_attend(Kv kv, i64 D, i64 R, i64 window) {
    const i64 N = window == kAll ? 160 : 96;
    std::vector<Ring> rings;
    for (size_t i = 0; i <= kernels_here().size(); i++) rings.emplace_back(kv, N, D);
    const Ring& base = rings.back();
    const std::string what = "attend over " + std::to_string(static_cast<int>(kv)) + ", D " + std::to_string(D) + ", R " +
                             std::to_string(R) + ", ring " + std::to_string(N);
    for (int32_t position = 0; position < 130; position += 45) {
        const Span span{1, 0, std::min(45, 130 - position), position};
        const Floats k = numbers(span.count * G * D), v = numbers(span.count * G * D), q = numbers(span.count * G * R * D);
        store(kernels_base, pool, base.view, &span, 1, k.data(), v.data());
        for (size_t i = 0; i < kernels_here().size(); i++) {
            const Kernels& set = *kernels_here()[i];
            store(set, pool, rings[i].view, &span, 1, k.data(), v.data());
            same("store: " + what, set, rings[i].k.bytes(), base.k.bytes(), base.k.size());
            same("store: " + what, set, rings[i].v.bytes(), base.v.bytes(), base.v.size());
            same("store: " + what, set, rings[i].k_scale.bytes(), base.k_scale.bytes(), base.k_scale.size());
        }
        check(what, attended(base, span, R, window, q), [&](const Kernels& set) {
            Floats out(q.size());
            attend(set, pool, base.view, &span, 1, G * R, window, q.data(), out.data());
            return out;
        });
    }
}

// a sweep over columns that know of each other, and over three spans: errors, levels, and what the errors pull
void check_in_turn(Type type, float low, float high) {
    const i64 rows = 21, cols = 544;
    const Floats w = numbers(rows * cols), zero(w.size(), -0.01f), step(w.size(), 0.3f);
    Floats feedback = numbers(cols * cols);
    for (float& value : feedback) value *= 0.02f;
    for (i64 k = 0; k < cols; k++) feedback[static_cast<size_t>(k * (cols + 1))] = 1.5f;
    Doubles want(w.begin(), w.end()), pull(w.size());
    for (i64 r = 0; r < rows; r++)
        for (i64 k = 0; k < cols; k++) {
            const auto at = static_cast<size_t>(r * cols + k);
            const double best = pull[at] / 1.5, was = want[at];  // (the error is w as yet)
            const double level = std::fmin(std::fmax(std::nearbyint((best + 0.01f) / 0.3f), low), high);
            want[at] = w[at] - (0.3f * level - 0.01f);
            for (i64 j = 0; j < cols; j++)
                pull[static_cast<size_t>(r * cols + j)] +=
                    (want[at] - was) * feedback[static_cast<size_t>(j / kColumns == k / kColumns ? j * cols + k : k * cols + j)];
        }
    check("in turn", want, [&](const Kernels& k) {
        Floats error = w, pulls(w.size());
        std::vector<int8_t> levels(w.size());
        sweep(k, pool,
              {type, cols, 0, 0, feedback.data(), w.data(), zero.data(), step.data(), pulls.data(), error.data(), levels.data()},
              rows, pulls.data());
        return error;
    });
}

// the same blocks from every set, on any machine; the first of them come back near what they were made of
void check_round(Type type, i64 rows, i64 cols, const float* importance) {
    const Floats x = numbers(rows * cols);
    const i64 row = row_bytes(type, cols);
    std::vector<uint8_t> base(static_cast<size_t>(rows * row)), mine(base.size());
    round_rows(kernels_base, pool, type, x.data(), rows, cols, importance, base.data());
    for (const Kernels* k : kernels_here()) {
        round_rows(*k, pool, type, x.data(), rows, cols, importance, mine.data());
        same("round to type " + std::to_string(static_cast<int>(type)), *k, mine.data(), base.data(), base.size());
    }
    Floats back(static_cast<size_t>(cols));
    kernels_base.dequantise(type, base.data(), cols, back.data());
    near("round", kernels_base, back, Doubles(x.begin(), x.begin() + cols), type == Type::Q2_K ? 0.4 : 0.25);
}

}  // namespace

int main(int count, char** names) {
    for (const Kernels* k : kernels_here()) std::printf("%s ", k->name);
    if (count > 1 && std::string(names[1]) != kernels_here()[0]->name) {
        std::printf("\nshould have chosen %s\n", names[1]);
        return 1;
    }
    check_sick();
    for (int type = 0; type < kTypes; type++) {
        const i64 step = block_columns(static_cast<Type>(type));
        for (i64 rows : {1, 51})
            for (i64 cols : {step, 3 * step, (517 + step) / step * step}) check_linear(static_cast<Type>(type), rows, cols);
        if (!is_float(static_cast<Type>(type)))
            for (i64 rows : {1, 51, 300}) check_kept(static_cast<Type>(type), rows, 3 * step);
    }
    const Floats importance(768, 2.0f);
    for (int type = 0; type < kTypes; type++)
        if (rounds(static_cast<Type>(type)))
            for (i64 rows : {1, 21})
                for (const float* weights : {static_cast<const float*>(nullptr), importance.data()})
                    check_round(static_cast<Type>(type), rows, 768, weights);
    check_in_turn(Type::Q4_0, -8, 7), check_in_turn(Type::Q2_K, 0, 3);
    for (i64 n : {1, 5, 16, 37, 300}) check_small(3, n);
    for (i64 rank : {1, 16, 20})
        for (i64 cols : {5, 300}) check_adapt(rank, cols, 37);
    for (Kv kv : {Kv::F32, Kv::F16, Kv::Q8_0})
        for (i64 D : {5, 16, 32, 50, 64, 128})
            for (i64 R : {1, 4, 8})
                for (i64 window : {i64{40}, kAll})
                    if (kv != Kv::Q8_0 || D % 32 == 0) check_attend(kv, D, R, window);
    std::printf("- %ld checks\n", checks);
}
