#include "run.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "pack.h"
#include "round.h"

#if defined(BISE_ARM64) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(BISE_ARM64) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace bise {
namespace {

constexpr i64 kDepth = 32;       // columns in the smallest blocks
constexpr i64 kGrain = 1 << 15;  // numbers that are worth waking another thread for
constexpr i64 kWork = 1 << 17;   // and multiply-adds of an adapter, where they wait for no memory
constexpr i64 kAdapted = 24;     // rows that go through an adapter at a time: whole tiles of every instruction set

// f(begin, end) over [0, n) in ranges of `step`
template <class Fn>
void ranges(Pool& pool, i64 n, i64 step, const Fn& f) {
    pool.run((n + step - 1) / step, [&](i64 i, int) { f(i * step, std::min(n, (i + 1) * step)); });
}

i64 rows_per_task(i64 row) { return std::max<i64>(1, kGrain / std::max<i64>(1, row)); }

// Scratch of the calling thread, kept between calls; contents undefined.
uint8_t* scratch(int slot, size_t bytes) {
    thread_local Buffer buffers[4];
    Buffer& b = buffers[slot];
    if (b.size() < bytes) b = Buffer(bytes + bytes / 4);
    return b.bytes();
}

// Panels that one task takes, an even number (kernels take pairs): enough to stream for a while, few enough to share out
// evenly, and with many tokens few enough for their bytes to stay in the second-level cache while the tokens pass. A small
// matrix is cut once for each thread: handing out tasks would cost more than waiting for the slower one.
i64 panels_per_task(const Matrix& w, i64 T, int threads) {
    const i64 bytes = T > kFew ? 384 << 10 : 128 << 10;
    const bool small = T <= kFew && w.panels * w.panel_bytes() <= threads * bytes * 2;
    const i64 fair = (w.panels + 1) / (small ? threads : 4 * threads), fit = bytes / w.panel_bytes();
    return std::max<i64>(2, (small ? fair : std::min(fair, fit)) / 2 * 2);
}

// Panels of a part of a matrix, in scratch of this thread.
Matrix part(Type type, i64 rows, i64 cols, i64 stride) {
    Matrix w{type, rows, cols, (rows + kRows - 1) / kRows, (cols + kColumns - 1) / kColumns, stride, true, Buffer()};
    const auto bytes = static_cast<size_t>(w.panels * w.panel_bytes());
    w.data = Buffer(scratch(3, bytes), bytes, [](void*) {}, nullptr);
    return w;
}

// panels [p, p1) of rows as the file has them
Matrix packed(const Matrix& w, i64 p, i64 p1) {
    Matrix some = part(w.type, std::min(w.rows, kRows * p1) - kRows * p, w.cols, w.rows);
    if (w.cols % kColumns) std::memset(some.data.bytes(), 0, some.data.size());
    for (i64 i = 0; i < some.panels; i++) {
        const uint8_t* rows = w.data.bytes() + kRows * (p + i) * row_bytes(w.type, w.cols);
        pack_panel(w.type, rows, some.rows_of(i), w.cols, some.data.bytes() + i * some.panel_bytes());
    }
    return some;
}

}  // namespace

void linear(const Kernels& k, Pool& pool, const float* x, i64 T, const std::vector<const Matrix*>& ws,
            const std::vector<float*>& ys) {
    if (!T || ws.empty()) return;
    const i64 cols = ws[0]->cols, blocks = (cols + kColumns - 1) / kColumns;
    const auto is = [&](bool (*type)(Type)) { return std::any_of(ws.begin(), ws.end(), [&](auto* w) { return type(w->type); }); };
    Act256* by256 = nullptr;
    Act32* by32 = nullptr;
    if (is([](Type t) { return by_256(t); }))
        by256 = reinterpret_cast<Act256*>(scratch(0, sizeof(Act256) * static_cast<size_t>(padded(T) * blocks)));
    if (is([](Type t) { return !is_float(t) && !by_256(t); })) {
        by32 = reinterpret_cast<Act32*>(scratch(1, sizeof(Act32) * static_cast<size_t>(padded(T) * blocks)));
    }
    if (by256 || by32) {
        ranges(pool, T, rows_per_task(cols), [&](i64 t0, i64 t1) {
            if (by256) k.quantise256(x, cols, T, t0, t1, by256);
            if (by32) k.quantise32(x, cols, T, t0, t1, by32);
        });
    }

    std::vector<i64> first(ws.size() + 1, 0), step(ws.size());  // tasks of all weights, one after the other
    for (size_t i = 0; i < ws.size(); i++) {
        step[i] = panels_per_task(*ws[i], T, pool.threads());
        first[i + 1] = first[i] + (ws[i]->panels + step[i] - 1) / step[i];
    }
    pool.run(first.back(), [&](i64 task, int) {
        size_t i = 0;
        while (task >= first[i + 1]) i++;
        const Matrix& w = *ws[i];
        const void* input = is_float(w.type) ? static_cast<const void*>(x)
                            : by_256(w.type) ? static_cast<const void*>(by256)
                                             : by32;
        const i64 p = (task - first[i]) * step[i], p1 = std::min(w.panels, p + step[i]);
        if (w.packed)
            k.linear(w, input, T, p, p1, ys[i]);
        else
            k.linear(packed(w, p, p1), input, T, 0, p1 - p, ys[i] + kRows * p);
    });
}

void linear_back(const Kernels& k, Pool& pool, const std::vector<const float*>& dys, i64 T, const std::vector<const Matrix*>& ws,
                 float* dx) {
    if (!T || ws.empty()) return;
    std::vector<i64> first{0};  // what is summed over: the rows of all weights, each in whole blocks
    for (const Matrix* w : ws) first.push_back(first.back() + (w->rows + kColumns - 1) / kColumns);
    auto* acts = reinterpret_cast<Act32*>(scratch(1, sizeof(Act32) * static_cast<size_t>(padded(T) * first.back())));
    for (size_t i = 0; i < ws.size(); i++) {
        ranges(pool, T, rows_per_task(ws[i]->rows),
               [&](i64 t0, i64 t1) { k.quantise_gradients(dys[i], ws[i]->rows, T, t0, t1, acts + first[i] * padded(T)); });
    }
    const i64 cols = ws[0]->cols;
    // columns at a time: the more, the less often the gradients are read; blocks of 256 cannot be cut
    const bool wide = std::any_of(ws.begin(), ws.end(), [](auto* w) { return by_256(w->type); });
    const i64 fair = cols / (4 * pool.threads()) / kDepth * kDepth, width = wide ? kColumns : std::clamp(fair, kDepth, kColumns);
    ranges(pool, cols, width, [&](i64 c0, i64 c1) {
        const Matrix turned = part(Type::Q8_0, c1 - c0, first.back() * kColumns, cols);
        for (size_t i = 0; i < ws.size(); i++) {
            uint8_t* panels = turned.data.bytes() + first[i] * packed_bytes(Type::Q8_0);
            k.turn(*ws[i], c0, c1 - c0, panels, turned.panel_bytes());
        }
        k.linear(turned, acts, T, 0, turned.panels, dx + c0);
    });
}

void adapt(const Kernels& k, Pool& pool, const float* x, const std::vector<Change>& changes) {
    struct Unit {  // rows [t0, t1) of a change, panels [p0, p1) of its A or B
        const Change* change;
        float* low;  // (t1 - t0, width)
        i64 t0, t1, p0, p1;
    };
    const auto width = [](const Change* c) { return kRows * c->a->panels; };
    i64 numbers = 0, cost = 0;
    for (const Change& c : changes) numbers += width(&c) * (c.t1 - c.t0);
    float* low = reinterpret_cast<float*>(scratch(2, sizeof(float) * static_cast<size_t>(numbers)));
    std::vector<Unit> downs, ups;
    for (const Change& c : changes) {
        for (i64 t = c.t0; t < c.t1; t += kAdapted) {
            const i64 end = std::min(c.t1, t + kAdapted), rows = std::max<i64>(kFew, end - t);
            for (i64 p = 0; p < c.a->panels; p++) downs.push_back({&c, low, t, end, p, p + 1});
            const i64 step = std::max<i64>(4, kWork / (kRows * c.b->cols * rows) / 4 * 4);
            for (i64 p = 0; p < c.b->panels; p += step) ups.push_back({&c, low, t, end, p, std::min(c.b->panels, p + step)});
            cost += rows * kRows * (c.a->panels * c.a->cols + c.b->panels * c.b->cols);
            low += width(&c) * (end - t);
        }
    }
    const auto each = [&](const std::vector<Unit>& units, const auto& f) {  // as many in one task as are worth it
        const i64 n = static_cast<i64>(units.size()), together = 2 * n * kWork / std::max<i64>(cost, 1);
        ranges(pool, n, std::max<i64>(1, together), [&](i64 i, i64 end) {
            for (; i < end; i++) f(units[static_cast<size_t>(i)]);
        });
    };
    each(downs, [&](const Unit& u) {
        const Matrix& a = *u.change->a;
        k.down(a, x + u.t0 * a.cols, u.t1 - u.t0, u.p0, width(u.change), u.low);
    });
    each(ups, [&](const Unit& u) {
        const Matrix& b = *u.change->b;
        k.up(b, u.low, width(u.change), u.t1 - u.t0, u.p0, u.p1, u.change->factor, u.change->y + u.t0 * b.rows);
    });
}

void dequantise(const Kernels& k, Pool& pool, Type type, const uint8_t* data, i64 rows, i64 cols, float* y) {
    const i64 bytes = row_bytes(type, cols);
    ranges(pool, rows, rows_per_task(cols),
           [&](i64 r0, i64 r1) { k.dequantise(type, data + r0 * bytes, (r1 - r0) * cols, y + r0 * cols); });
}

void look_up(const Kernels& k, Pool& pool, const float* levels, const uint8_t* p, const float* scales, i64 blocks, float* y) {
    ranges(pool, blocks, kGrain / 64, [&](i64 b0, i64 b1) { k.look_up(levels, p + 32 * b0, scales + b0, b1 - b0, y + 64 * b0); });
}

void rms_norm(const Kernels& k, Pool& pool, const float* x, const float* w, float eps, i64 T, i64 n, float* y) {
    ranges(pool, T, rows_per_task(n), [&](i64 t0, i64 t1) { k.rms_norm(x, w, eps, n, t0, t1, y); });
}

void rope(const Kernels& k, Pool& pool, float* x, const float* cos, const float* sin, i64 T, i64 heads, i64 half) {
    ranges(pool, T, rows_per_task(heads * half * 2), [&](i64 t0, i64 t1) { k.rope(x, cos, sin, heads, half, t0, t1); });
}

void swiglu(const Kernels& k, Pool& pool, const float* gate, const float* up, i64 n, float* y) {
    ranges(pool, n, kGrain, [&](i64 i0, i64 i1) { k.swiglu(gate + i0, up + i0, i1 - i0, y + i0); });
}

void rms_norm_back(const Kernels& k, Pool& pool, const float* x, const float* w, float eps, i64 T, i64 n, const float* dy,
                   float* dx) {
    ranges(pool, T, rows_per_task(n), [&](i64 t0, i64 t1) { k.rms_norm_back(x, w, eps, n, t0, t1, dy, dx); });
}

void swiglu_back(const Kernels& k, Pool& pool, const float* gate, const float* up, const float* dy, i64 n, float* dgate,
                 float* dup) {
    ranges(pool, n, kGrain, [&](i64 i0, i64 i1) { k.swiglu_back(gate + i0, up + i0, dy + i0, i1 - i0, dgate + i0, dup + i0); });
}

void store(const Kernels& k, Pool& pool, const RingView& ring, const Span* spans, i64 count, const float* x, const float* v) {
    for (const Span* s = spans; s < spans + count; s++) {
        ranges(pool, s->count, rows_per_task(ring.G * ring.D), [&](i64 i0, i64 i1) { k.store(ring, *s, i0, i1, x, v); });
    }
}

void attend(const Kernels& k, Pool& pool, const RingView& ring, const Span* spans, i64 count, i64 heads, i64 window,
            const float* q, float* out) {
    const i64 R = heads / ring.G;
    std::vector<Queries> units;
    for (const Span* s = spans; s < spans + count; s++) {
        for (i64 t = (s->count - 1) / kQueries * kQueries; t >= 0; t -= kQueries) {  // the latest see most: they go first
            const i64 n = std::min<i64>(kQueries, s->count - t);
            for (i64 g = 0; g < ring.G; g++) units.push_back({s->sequence, g, s->row + t, n, s->position + t});
        }
    }
    const size_t bytes = (static_cast<size_t>(attend_scratch(R, ring.D)) + 63) / 64 * 64;
    uint8_t* memory = scratch(2, bytes * static_cast<size_t>(pool.threads()));
    pool.run(static_cast<i64>(units.size()), [&](i64 i, int thread) {
        k.attend(ring, units[static_cast<size_t>(i)], R, window, q, out, memory + bytes * static_cast<size_t>(thread));
    });
}

i64 round_rows(const Kernels& k, Pool& pool, Type type, const float* x, i64 rows, i64 cols, const float* importance,
               uint8_t* out) {
    const i64 bytes = bise::row_bytes(type, cols);
    std::atomic<i64> sick{rows};
    pool.run((rows + kRows - 1) / kRows, [&](i64 strip, int) {
        const i64 r = strip * kRows;
        const int found = k.round_rows(type, x + r * cols, cols, static_cast<int>(std::min(kRows, rows - r)), importance,
                                       out + r * bytes, bytes);
        for (i64 first = sick; found >= 0 && r + found < first && !sick.compare_exchange_weak(first, r + found);) {
        }
    });
    return sick == rows ? -1 : sick.load();
}

void in_turn(const Kernels& k, Pool& pool, const Columns& columns, i64 rows) {
    ranges(pool, rows, kRows, [&](i64 r0, i64 r1) { k.in_turn(columns, r0, static_cast<int>(r1 - r0), nullptr); });
}

void sweep(const Kernels& k, Pool& pool, Columns columns, i64 rows, float* pull) {
    const i64 group = std::clamp<i64>((rows + pool.threads() - 1) / pool.threads(), 1, 512);  // rows that share a look at it
    const Buffer memory(sizeof(Moves) * static_cast<size_t>(rows));
    auto* moves = memory.as<Moves>();
    for (columns.at = 0; columns.at < columns.cols; columns.at += kColumns) {
        columns.n = std::min(kColumns, columns.cols - columns.at);
        ranges(pool, rows, kRows, [&](i64 r0, i64 r1) { k.in_turn(columns, r0, static_cast<int>(r1 - r0), moves + r0); });
        ranges(pool, rows, group, [&](i64 r0, i64 r1) { k.spread(columns, moves, r0, r1 - r0, pull); });
    }
}

#ifdef BISE_ARM64
namespace {
bool has_dot_products() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__APPLE__)
    int there = 0;
    size_t size = sizeof there;
    return !sysctlbyname("hw.optional.arm.FEAT_DotProd", &there, &size, nullptr, 0) && there;
#else
    return false;
#endif
}
}  // namespace
#endif

const std::vector<const Kernels*>& kernels_here() {
    static const std::vector<const Kernels*> here = [] {
        std::vector<const Kernels*> sets;
#ifdef BISE_X86
        __builtin_cpu_init();  // these ask CPUID, and XGETBV whether the system saves the registers
        const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                          __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
        const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("avx512vnni");
        if (avx2 && avx512) sets.push_back(&kernels_avx512vnni);
        if (avx2) sets.push_back(&kernels_avx2);
#endif
#ifdef BISE_ARM64
        if (has_dot_products()) sets.push_back(&kernels_neondot);
#endif
        sets.push_back(&kernels_base);
        return sets;
    }();
    return here;
}

}  // namespace bise
